"""Deadlines: an answer that is not whole in time ends with an error, and what it holds is free at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from liuyi.infer.errors import DeadlinePassed, RequestError
from liuyi.infer.server.backend import Delta, Deltas

T = TypeVar("T")
HEADER = "x-request-timeout"


def timeout_of(header: str | None, field: float | None, default_s: float | None) -> float | None:
    """The seconds that a request may take: its body's, else its header's, never more than the server's; None for ever.

    Raises RequestError if the header is no positive number.
    """
    asked = field
    if asked is None and header is not None:
        try:
            asked = float(header)
        except ValueError:
            asked = math.nan
        if not 0 < asked < math.inf:
            raise RequestError("X-Request-Timeout must be a number of seconds above 0", param="timeout")
    given = [seconds for seconds in (asked, default_s) if seconds is not None]
    return min(given) if given else None


async def within(timeout_s: float | None, begin: Callable[[], Awaitable[Deltas]]) -> Deltas:
    """The deltas of `begin`, all of which have to come within so many seconds. Raises DeadlinePassed."""
    if timeout_s is None:
        return await begin()
    ends = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(ends):
            return _Timed(await begin(), ends, timeout_s)
    except TimeoutError:
        raise _passed(timeout_s) from None


async def limited(timeout_s: float | None, work: Coroutine[Any, Any, T], since: float | None = None) -> T:
    """The result of `work`, which has to come within so many seconds of `since`, a time of the event loop, or of now.

    Raises DeadlinePassed.
    """
    began = asyncio.get_running_loop().time() if since is None else since
    try:
        async with asyncio.timeout_at(None if timeout_s is None else began + timeout_s):
            return await work
    except TimeoutError:
        raise _passed(timeout_s or 0) from None


class _Timed:
    def __init__(self, deltas: Deltas, ends: float, timeout_s: float) -> None:
        self._deltas = deltas
        self._ends = ends
        self._timeout_s = timeout_s

    async def tell(self, take: Callable[[Delta], None]) -> None:
        try:
            async with asyncio.timeout_at(self._ends):
                await self._deltas.tell(take)
        except TimeoutError:
            await self._deltas.aclose()
            raise _passed(self._timeout_s) from None

    async def aclose(self) -> None:
        await self._deltas.aclose()


def _passed(timeout_s: float) -> DeadlinePassed:
    return DeadlinePassed(f"the answer was not there within {timeout_s:g} s")
