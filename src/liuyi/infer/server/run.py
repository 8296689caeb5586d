"""Listen, answer, and on SIGTERM or SIGINT stop listening but finish what was begun."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuyi.core.errors import LiuyiError
from liuyi.infer.server.connection import ImpatientProtocol
from liuyi.infer.server.gate import Gate


class Opening:
    """An app that does not log why it has not started where that is no fault of the code.

    A LiuyiError is kept for whoever starts the server; to be told to stop while a model loads is nothing to tell.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.problem: LiuyiError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        failed: list[Message] = []

        async def held_back(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failed.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, held_back)
        except (LiuyiError, asyncio.CancelledError) as error:
            if not failed:
                raise
            self.problem = error if isinstance(error, LiuyiError) else None
            await send({"type": "lifespan.startup.failed", "message": ""})
        except BaseException:
            for message in failed:
                await send(message)
            raise


def _is_news(record: logging.LogRecord) -> bool:
    """Not what uvicorn says last when the app has not started: `serve` raises an error that says it, and why."""
    return record.msg != "Application startup failed. Exiting."


class Server(uvicorn.Server):
    """A uvicorn server that says when it listens, and drains before it stops.

    The first SIGTERM or SIGINT begins the drain: new requests are refused with 503 until those inside have ended or
    `drain_s` is over. A second signal ends it at once.
    """

    def __init__(
        self, config: uvicorn.Config, opening: Opening, gate: Gate, drain_s: int, listening: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.opening = opening
        self._gate = gate
        self._drain_s = drain_s
        self._listening = listening
        self._serving: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving = asyncio.current_task()
        await super().serve(sockets)

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
            assert self._serving is not None
            self._serving.get_loop().call_soon_threadsafe(self._serving.cancel)
        elif self._gate.draining:
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
    opening = Opening(app)
    config = uvicorn.Config(
        opening,
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
        lifespan="on",
    )
    return Server(config, opening, gate or Gate(), drain_s, listening)


def serve(server: Server, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and return once everything begun has been finished; at once while the app starts.

    Raises LiuyiError if the app could not start: that which it met, if it was one.
    """
    # To search all that is loaded for garbage holds up every stream for 50 ms: once now, and never again.
    gc.collect()
    gc.freeze()
    # uvicorn raises the signal again after the drain; by then it has done its work.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    log = logging.getLogger("uvicorn.error")
    log.addFilter(_is_news)
    try:
        server.run(sockets=[bound])
    except asyncio.CancelledError:
        return  # It was told to stop before it served anybody.
    except SystemExit:
        # Its way to say that the app has not started.
        if server.started:
            raise
    finally:
        log.removeFilter(_is_news)
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise server.opening.problem or LiuyiError("the server could not start; its log says why")
