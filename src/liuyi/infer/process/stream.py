"""What comes back of requests that were handed to an engine's process together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from liuyi.infer.request import Update


class Stream:
    """The updates of requests that came together, as (number of the request, update), for one task.

    It either iterates over them, or is told each by a call within that which brought it from the engine: with many
    streams, to wake a task for each token takes longer than all that is done with the token.
    Close it before its end to cancel what is left; after its end closing does nothing.
    """

    def __init__(self, ids: Sequence[int], cancel: Callable[[Sequence[int]], None]) -> None:
        self._ids = ids
        self._cancel = cancel
        self._unfinished = len(ids)
        self._updates: deque[tuple[int, Update]] = deque()
        """Those that nobody has seen."""
        self._waiting: asyncio.Future[None] | None = None
        self._take: Callable[[int, Update], None] | None = None
        self._told: asyncio.Future[Exception | None]
        """Done once `_take` was called with the last update, or why it is called no more."""

    def put(self, index: int, update: Update) -> None:
        """An update has come."""
        if self._take is not None:
            self._tell(self._take, index, update)
            return
        self._updates.append((index, update))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[int, Update]:
        if not self._unfinished:
            raise StopAsyncIteration
        if not self._updates:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        index, update = self._updates.popleft()
        if update.error is not None:
            await self.aclose()
            raise update.error
        if update.completion is not None:
            self._unfinished -= 1
        return index, update

    async def tell(self, take: Callable[[int, Update], None]) -> None:
        """Call `take` with each update as it comes, and return after the last. Raises what `take` raises."""
        if not self._unfinished:
            return
        self._told = asyncio.get_running_loop().create_future()
        while self._updates:
            self._tell(take, *self._updates.popleft())
        self._take = take
        try:
            if (error := await self._told) is not None:
                raise error
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Cancel the requests that have not ended; what they hold is free before the next step."""
        if self._unfinished:
            self._unfinished = 0
            self._cancel(self._ids)

    def _tell(self, take: Callable[[int, Update], None], index: int, update: Update) -> None:
        if self._told.done():
            return
        try:
            if update.error is not None:
                raise update.error
            take(index, update)
        except Exception as error:
            # Whoever reads from the engine has other streams to tell.
            self._told.set_result(error)
            return
        if update.completion is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._told.set_result(None)
