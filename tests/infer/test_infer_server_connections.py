"""Connections that bring half of a request, or none, do not stay open."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from infer_support import LiveServer, served
from starlette.responses import StreamingResponse

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
