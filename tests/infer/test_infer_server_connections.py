"""Connections that bring half of a request, or none, do not stay open."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
import uvicorn
from fastapi import FastAPI, Request
from infer_support import LiveServer, served
from starlette.responses import StreamingResponse
from uvicorn.server import ServerState

from liuyi.infer.server import connection, errors
from liuyi.infer.server.guard import BodyLimit


def connected(live: LiveServer) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("begun", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_half_a_header_is_not_waited_for(live: LiveServer, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.1)
    with connected(live) as sock:
        sock.sendall(begun)
        assert sock.recv(1) == b""


def test_nor_is_it_after_a_first_answer(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    with connected(live) as sock:
        whole = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sock.sendall(whole)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.sendall(whole[:20])
        while sock.recv(1000):
            pass


def test_a_long_answer_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    app = FastAPI()

    @app.get("/late")
    async def late() -> str:
        await asyncio.sleep(2 * connection.HEADERS_S)
        return "here"

    with served(lambda record, gate: app) as live, connected(live) as sock:
        sock.sendall(b"GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKEN_S", 0.3)
    ended = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
                await asyncio.sleep(0)
        finally:
            ended.set()

    app = FastAPI()

    @app.get("/all")
    async def everything() -> StreamingResponse:
        return StreamingResponse(endless())

    with served(lambda record, gate: app) as live, connected(live) as reader, connected(live) as sleeper:
        for sock in (reader, sleeper):
            sock.sendall(b"GET /all HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not ended.wait(0.02):
            assert reader.recv(1 << 20)
        assert reader.recv(1 << 20)
        while sleeper.recv(1 << 20):
            pass


class Waiter:
    """An event loop's timers."""

    def __init__(self) -> None:
        self.due: list[asyncio.TimerHandle] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append(asyncio.TimerHandle(delay_s, call, (), cast("asyncio.AbstractEventLoop", self)))
        return self.due[-1]

    def pass_by(self) -> None:
        """All that was waited for has come."""
        now, self.due = self.due, []
        for timer in now:
            if not timer.cancelled():
                timer._run()

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        pass

    def get_debug(self) -> bool:
        return False


class Backlog(asyncio.Transport):
    """A client's end of which the test says how much it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.given_up = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.left += len(data)

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return self.given_up

    def abort(self) -> None:
        self.given_up = True


@pytest.mark.parametrize("is_stream", [False, True])
def test_who_takes_an_answer_slowly_gets_it(is_stream: bool) -> None:
    """However long it takes, and though what is left grows meanwhile; who then takes nothing is hung up on."""
    loop, client = Waiter(), Backlog()
    config = uvicorn.Config(FastAPI(), http=connection.ImpatientProtocol, ws="none", log_config=None)
    protocol = connection.ImpatientProtocol(config, ServerState(), {}, cast("asyncio.AbstractEventLoop", loop))
    protocol.connection_made(client)
    protocol._wait_no_more()
    client.left = 1 << 20
    protocol.pause_writing()
    for _ in range(10):
        client.left -= 1000
        if is_stream:
            protocol._write(b"x" * 2000)
        loop.pass_by()
        assert not client.given_up
    if is_stream:
        protocol._write(b"x" * 2000)
    loop.pass_by()
    assert client.given_up


def test_half_a_body_is_not_waited_for() -> None:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=100, patience_s=0.1)

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    with served(lambda record, gate: app) as live:
        head = b"POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
        with connected(live) as sock:
            sock.sendall(head + b"x" * 50)
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        with connected(live) as sock:
            sock.sendall(head + b"x")
            answer = b""
            while piece := sock.recv(1000):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"was not there within 0.1 s" in answer
