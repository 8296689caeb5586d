"""The door of the server: counts what is inside, and lets nobody in any more once the server is about to stop."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuyi.infer.server.errors import REFUSALS, error_response

OPEN_PATHS = frozenset({"/health", "/metrics"})
"""Answered while the server drains, too."""


class Gate:
    """What the server and its application both know of requests in work."""

    def __init__(self) -> None:
        self.inside = 0
        self.draining = False
        self._until = 0.0

    def drain(self, patience_s: float) -> None:
        """From now on nobody comes in; whoever is inside has so many seconds."""
        self.draining = True
        self._until = monotonic() + patience_s

    @property
    def remaining_s(self) -> int:
        """Whole seconds until the server stops at the latest; at least 1."""
        return max(1, round(self._until - monotonic()))

    @property
    def is_drained(self) -> bool:
        """The server drains, and nobody is inside or they have had their time."""
        return self.draining and (self.inside == 0 or monotonic() >= self._until)


class Doorkeeper:
    """Middleware before everything else: refuses with 503 and Retry-After while the server drains.

    `refused` is told the reason of every request that was turned away, here or further in.
    """

    def __init__(self, app: ASGIApp, gate: Gate, refused: Callable[[str], None] = lambda _: None) -> None:
        self.app = app
        self.gate = gate
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        gate = self.gate

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in REFUSALS:
                self.refused(scope.get("state", {}).get("error_code") or str(message["status"]))
            await send(message)

        if gate.draining:
            headers = {"Retry-After": str(gate.remaining_s), "Connection": "close"}
            response = error_response(503, "the server is about to stop", code="draining", headers=headers)
            await response(scope, receive, counted)
            return
        gate.inside += 1
        try:
            await self.app(scope, receive, counted)
        finally:
            gate.inside -= 1
