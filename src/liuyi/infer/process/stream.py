"""What comes back of requests that were handed to an engine's process together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from liuyi.infer.request import Update


class Stream:
    """The updates of requests that came together, as (number of the request, update), for one task.

    Close it before its end to cancel what is left; after its end closing does nothing.
    """

    def __init__(self, ids: Sequence[int], cancel: Callable[[Sequence[int]], None]) -> None:
        self._updates: deque[tuple[int, Update]] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._ids = ids
        self._cancel = cancel
        self._unfinished = len(ids)

    def put(self, index: int, update: Update) -> None:
        """An update has come."""
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

    async def aclose(self) -> None:
        """Cancel the requests that have not ended; what they hold is free before the next step."""
        if self._unfinished:
            self._unfinished = 0
            self._cancel(self._ids)
