"""Listen, answer, and on SIGTERM or SIGINT stop listening but finish what was begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from liuyi.core.errors import LiuyiError


class Server(uvicorn.Server):
    """A uvicorn server that says when it listens; its `should_exit` begins the drain."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._listening()


def make_server(app: ASGIApp, *, drain_s: int = 30, listening: Callable[[], None] = lambda: None) -> Server:
    """A server for the app; `listening` is called once it takes calls.

    After SIGTERM it takes no new ones, and gives those in work `drain_s` seconds.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
        lifespan="on",
    )
    return Server(config, listening)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises LiuyiError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay only where the protocol is named.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise LiuyiError(f"cannot listen on {host}:{port}: {reason}", hint="choose another --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The URL at which a bound socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(server: Server, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and return once everything begun has been finished.

    Raises LiuyiError if the app could not start.
    """
    # uvicorn raises the signal again after the drain; by then it has done its work.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise LiuyiError("the server could not start; its log says why")
