"""Listen, answer, and on SIGTERM or SIGINT stop listening but finish what was begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from liuyi.core.errors import LiuyiError
from liuyi.infer.server.gate import Gate


class Server(uvicorn.Server):
    """A uvicorn server that says when it listens, and drains before it stops.

    The first SIGTERM or SIGINT begins the drain: new requests are refused with 503 until those inside have ended or
    `drain_s` is over. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_s: int, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._gate = gate
        self._drain_s = drain_s
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._listening()

    def drain(self) -> None:
        """Let nobody in any more, and stop when nobody is inside."""
        self._gate.drain(self._drain_s)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            # Nobody is served yet, and a large model may take minutes to load.
            raise KeyboardInterrupt
        if self._gate.draining:
            super().handle_exit(sig, frame)
        else:
            self.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._gate.is_drained


def make_server(
    app: ASGIApp, *, gate: Gate | None = None, drain_s: int = 30, listening: Callable[[], None] = lambda: None
) -> Server:
    """A server for the app and its gate; `listening` is called once it takes calls.

    After SIGTERM it takes no new ones, and gives those in work `drain_s` seconds.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
        lifespan="on",
    )
    return Server(config, gate or Gate(), drain_s, listening)


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
