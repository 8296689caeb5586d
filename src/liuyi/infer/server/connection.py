"""Connections on which a client is idle too long are closed: it brings no request, or takes nothing of its answer.

Requests are parsed by httptools, a binding of llhttp. It bounds no header, and asks for no `Host`; both is done here.
"""

from __future__ import annotations

import asyncio
import logging

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from liuyi.infer.server.respond import WRITE

logger = logging.getLogger("liuyi.server")

HEADERS_S = 30.0
"""A request's line and headers have to be there so long after the connection, or after their first byte."""
TAKEN_S = 60.0
"""An answer that the client takes nothing of for so long is given up, and its work cancelled."""
LEFT_BYTES = 8 * 2**20
"""So is a stream of which so much was not taken yet: nobody who makes it waits for the client."""
MAX_HEAD_BYTES = 64 * 1024
"""A request's line and headers, or what else stands between two pieces of its body, may be so long."""


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself is patient with answers, and with requests until one has been answered."""

    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _left_bytes = 0
    """What the client would not have taken yet if it had taken nothing since it was last looked at."""
    _unread_bytes = 0
    """What has come since the last head, or piece of a body, that was whole."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._waiting is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._unread_bytes = 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise httptools.HttpParserError("a request names one host")
        self.scope["extensions"] = {WRITE: {"send": self._write}}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._is_taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_taken()

    def _write(self, body: bytes) -> None:
        if not body or self.transport.is_closing():
            return
        chunk = b"%x\r\n%b\r\n" % (len(body), body)
        if self._stuck is not None:
            self._left_bytes += len(chunk)
        self.transport.write(chunk)
        if self._stuck is not None and self.transport.get_write_buffer_size() > LEFT_BYTES:
            self._hang_up()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADERS_S, self._give_up)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _is_taken(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _look_again(self) -> None:
        self._left_bytes = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(TAKEN_S, self._look)

    def _look(self) -> None:
        if self.transport.get_write_buffer_size() < self._left_bytes:
            self._look_again()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        logger.warning("a client that did not read its answer was hung up on")
        self.transport.abort()
