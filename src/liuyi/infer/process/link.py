"""The owner's end of the socket, in an event loop: a message is handed on within the call that brought its last byte.

A stream reader would wake a task, and that one those that wait for tokens, a turn of the event loop later.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from liuyi.infer.process.messages import HEADER_BYTES, FromEngine, ToEngine, frame, read_from_engine


class Link(asyncio.Protocol):
    """A connection to an engine's process."""

    def __init__(self, take: Callable[[FromEngine], None]) -> None:
        self._take = take
        self._unread = bytearray()
        self._transport: asyncio.Transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the other side has hung up, or this one has."""

    @classmethod
    async def over(cls, sock: socket.socket, take: Callable[[FromEngine], None]) -> Link:
        """A link over a connected socket; `take` is called with each message."""
        _, link = await asyncio.get_running_loop().create_connection(lambda: cls(take), sock=sock)
        return link

    def send(self, message: ToEngine) -> None:
        """Write now or soon."""
        self._transport.write(frame(message))

    async def outlasts(self, work: asyncio.Future[Any]) -> bool:
        """Wait until it is done; False if the link was lost before that."""
        either: set[asyncio.Future[Any]] = {work, self.lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return work.done()

    def close(self) -> None:
        """Hang up, once all is written."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        begin = 0
        while (payload := begin + HEADER_BYTES) <= len(self._unread):
            end = payload + int.from_bytes(self._unread[begin:payload], "big")
            if end > len(self._unread):
                break
            self._take(read_from_engine(self._unread[payload:end]))
            begin = end
        del self._unread[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
