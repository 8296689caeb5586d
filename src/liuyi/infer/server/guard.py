"""What stands before the routes: who may call, from where, and how much they may send. Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuyi.core.errors import LiuyiError
from liuyi.infer.server.errors import error_response

OPEN_PATHS = frozenset({"/health"})


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_keys_beyond_loopback(host: str, keys: Sequence[str], variable: str) -> None:
    """Raises LiuyiError if `host` can be reached from other machines and nobody would be asked for a key.

    `variable` is the environment variable that holds the keys.
    """
    if not keys and not is_loopback(host):
        raise LiuyiError(
            f"listening on {host} lets other machines in, and no API key is set",
            hint=f"set ${variable} (several keys separated by commas), or listen on 127.0.0.1",
        )


class ApiKeys:
    """Lets requests pass that carry one of the keys as `Authorization: Bearer …`; without keys, all of them.

    Only digests of the keys are kept, and they are compared in constant time.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str] = ()) -> None:
        self.app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            response = error_response(
                401, "a valid API key is needed: 'Authorization: Bearer KEY'", headers={"WWW-Authenticate": "Bearer"}
            )
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


class LocalHostsOnly:
    """Refuses requests to a loopback server under another name: no web page reaches it by DNS rebinding."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "").lower()
            name = host.partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
            if not is_loopback(name):
                await error_response(403, "this server answers to localhost only")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses bodies of more than `max_bytes` before they are read whole."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"the body is larger than {self.max_bytes} bytes"
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            await error_response(413, too_large, headers={"Connection": "close"})(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise HTTPException(413, too_large, headers={"Connection": "close"})
            return message

        await self.app(scope, counted, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
