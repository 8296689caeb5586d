"""Scripted servers for the load client, on a clock that jumps; aiohttp's own parser reads what they write."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from aiohttp.client_proto import ResponseHandler

from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.drive import Load
from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.workload import Ask

T = TypeVar("T")
Wire = Sequence[tuple[float, bytes | Exception | None]]
"""What a server writes: (seconds to wait, bytes) one after the other; an error or None ends the connection."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps over every wait, so that delays are exact and cost nothing."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.now = 0.0
        wait = self._selector.select

        def select(timeout: float | None) -> Any:
            self.now += timeout or 0.0
            return wait(0)

        self._selector.select = select

    def time(self) -> float:
        return self.now


def jump(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


@dataclass(frozen=True)
class Reply:
    """A status, headers, and what is written after them."""

    wire: Wire = ()
    status: int = 200
    headers: tuple[str, ...] = ("Transfer-Encoding: chunked",)

    def head(self) -> bytes:
        return "\r\n".join((f"HTTP/1.1 {self.status} so", *self.headers, "", "")).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = chunk(b"")


def line(event: Any) -> bytes:
    return f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()


def events(*each: tuple[float, Any]) -> Reply:
    """A stream that comes to its end, with an event after each wait."""
    return Reply([*((wait, chunk(line(event))) for wait, event in each), (0, LAST_CHUNK)])


def refused(status: int, body: bytes = b"") -> Reply:
    return Reply([(0, chunk(body)), (0, LAST_CHUNK if body else b"")], status)


def answer_events(waits: Iterable[float], *, prompt_tokens: int = 7, tokens: int | None = None) -> list[Any]:
    """The (wait, event) of a whole answer whose pieces come after `waits`."""
    pieces = [(wait, {"choices": [{"index": 0, "text": "x", "finish_reason": None}]}) for wait in waits]
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(pieces) if tokens is None else tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    finish = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    return [*pieces, (0, finish), (0, {"choices": [], "usage": usage}), (0, "[DONE]")]


def answer(waits: Sequence[float], *, tokens: int | None = None, end: float = 0.0) -> Reply:
    """A whole answer whose pieces come after `waits`, and its end after `end`."""
    *pieces, (_, finish), usage, done = answer_events(waits, tokens=tokens)
    return events(*pieces, (end, finish), usage, done)


class Scripted:
    """A server that answers each request by a script, and keeps what it was asked and when."""

    def __init__(self, script: Callable[[dict[str, Any]], Reply]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.hung_up_s: list[float] = []

    def connector(self) -> aiohttp.BaseConnector:
        return _Connector(self)

    async def serve(self, request: bytes, client: _Transport) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        self.paths.append(head.split()[1].decode())
        self.times.append(asyncio.get_running_loop().time())
        self.bodies.append(json.loads(body))
        reply = self.script(self.bodies[-1])
        client.say(reply.head())
        for wait, data in reply.wire:
            await asyncio.sleep(wait)
            if client.is_closing():
                return
            if not isinstance(data, bytes):
                client.end(data)
                return
            client.say(data)


class _Connector(aiohttp.BaseConnector):
    def __init__(self, server: Scripted) -> None:
        super().__init__(limit=0, force_close=True)
        self.server = server

    async def _create_connection(self, *_: Any) -> ResponseHandler:
        client = ResponseHandler(asyncio.get_running_loop())
        client.connection_made(_Transport(self.server, client))
        return client


class _Transport(asyncio.Transport):
    """The client's end of a connection."""

    def __init__(self, server: Scripted, client: ResponseHandler) -> None:
        super().__init__()
        self.server, self.client = server, client
        self.asked, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.asked += bytes(data)
        head, end, body = self.asked.partition(b"\r\n\r\n")
        length = [int(row.split(b":")[1]) for row in head.split(b"\r\n") if row.startswith(b"Content-Length:")]
        if end and length == [len(body)]:
            self.serving = asyncio.get_running_loop().create_task(self.server.serve(self.asked, self))

    def say(self, data: bytes) -> None:
        if data:
            self.client.data_received(data)

    def end(self, error: Exception | None) -> None:
        self.closed = True
        self.client.connection_lost(error)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.server.hung_up_s.append(asyncio.get_running_loop().time())
            asyncio.get_running_loop().call_soon(self.client.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        raise AssertionError("the client is too slow for a server that waits for it")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def measure(server: Scripted, load: Load, **options: Any) -> list[Outcome]:
    async def work() -> list[Outcome]:
        async with aiohttp.ClientSession(connector=server.connector()) as http:
            return await load.run(Endpoint(http, "http://peer/v1/", model="m", **options).send, lambda: None)

    return jump(work())


def asks(count: int, **changes: Any) -> list[Ask]:
    return [Ask("hello", 8, **changes) for _ in range(count)]
