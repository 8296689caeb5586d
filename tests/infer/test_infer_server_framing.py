"""Where one request ends and the next begins: what could be read in two ways is refused, and heads are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from infer_support import LiveServer
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from liuyi.infer.server import connection


def connected(live: LiveServer) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answer_of(sock: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            answer += piece
    return answer


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /h\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\n{\r\n0\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_request_that_two_servers_could_read_differently_is_refused(live: LiveServer, request_bytes: bytes) -> None:
    with connected(live) as sock:
        sock.sendall(request_bytes)
        assert answer_of(sock).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"GET /", b"x" * 1000),
        (b"", b"\r\n" * 500),
        (b"GET / HTTP/1.1\r\nA: ", b"x" * 1000),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 100),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=", b"x" * 1000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 100),
    ],
)
def test_what_stands_around_bodies_is_bounded(begun: bytes, more: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def feed() -> None:
        protocol = connection.ImpatientProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})
        transport = Mock(spec=asyncio.Transport, is_closing=lambda: transport.close.called)
        transport.get_extra_info.return_value = None
        protocol.connection_made(transport)
        protocol.data_received(begun)
        for fed in range(0, connection.MAX_HEAD_BYTES + 1, len(more)):
            assert not transport.close.called, fed
            protocol.data_received(more)
        assert transport.write.call_args.args[0].startswith(b"HTTP/1.1 400 ")
        assert transport.close.called
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    asyncio.run(feed())


def test_a_body_may_be_longer_than_a_head(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_HEAD_BYTES", 1000)

    def pieces() -> Iterator[bytes]:
        yield b'{"model": "tiny", "max_tokens": 1, "prompt": "'
        for _ in range(500):
            yield b"turn "
        yield b'"}'

    answer = httpx.post(
        f"{live.url}/v1/completions", content=pieces(), headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_requests_that_come_together_are_answered_in_turn(live: LiveServer) -> None:
    def get(path: str, more: str = "") -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()

    with connected(live) as sock:
        # An offer of HTTP/2, as some clients make it by default, is passed over.
        sock.sendall(get("/health", "Connection: Upgrade\r\nUpgrade: h2c\r\n"))
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.sendall(get("/health") + get("/nowhere") + get("/health", "Connection: close\r\n"))
        answer = answer_of(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]
