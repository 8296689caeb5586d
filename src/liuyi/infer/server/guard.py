"""What stands before the routes: who may call, from where, how much and how often. Plain ASGI."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liuyi.core.errors import LiuyiError
from liuyi.infer.address import is_loopback
from liuyi.infer.server.errors import error_response
from liuyi.infer.server.keys import ApiKey, KeyRing
from liuyi.infer.server.limits import Caller

logger = logging.getLogger("liuyi.server")

OPEN_PATHS = frozenset({"/health"})
_BYTES_PER_TOKEN = 4


def require_keys_beyond_loopback(host: str, keys: KeyRing, variable: str) -> None:
    """Raises LiuyiError if `host` can be reached from other machines and nobody would be asked for a key.

    `variable` is the environment variable that may hold keys.
    """
    if not keys and not is_loopback(host):
        raise LiuyiError(
            f"listening on {host} lets other machines in, and no API key is set",
            hint=f"make one with 'liuyi keys create NAME' and give --keys-file, set ${variable} (several keys "
            "separated by commas), or listen on 127.0.0.1",
        )


@dataclass
class Charge:
    """What a request counts for under the limits of its key."""

    key: str
    """Name of the key, for records."""
    estimated_tokens: int
    used_tokens: int | None = None
    """None as long as nothing was done."""


class ApiKeys:
    """Lets requests pass that carry a known key as `Authorization: Bearer …`, as many as its limits allow.

    Without keys all pass. A request that passed has its `Charge` in `request.state.charge`.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self._keys = keys
        self._callers: dict[ApiKey, Caller] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = self._key(headers.get("authorization", ""))
        if key is None:
            response = error_response(
                401, "a valid API key is needed: 'Authorization: Bearer KEY'", headers={"WWW-Authenticate": "Bearer"}
            )
            await response(scope, receive, send)
            return
        caller = self._callers.setdefault(key, Caller(key))
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        charge = Charge(key.name, int(length) // _BYTES_PER_TOKEN if length.isdigit() else 0)
        refused = caller.enter(charge.estimated_tokens)
        if refused is not None:
            limit, wait_s = refused
            message = f"the key '{key.name}' has reached its limit of {limit} a minute"
            more = {"Retry-After": str(wait_s), **caller.headers()}
            response = error_response(429, message, code="rate_limit_exceeded", headers=more)
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["charge"] = charge

        async def with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.headers())
            await send(message)

        try:
            await self.app(scope, receive, with_limits)
        finally:
            caller.settle(charge.estimated_tokens, charge.used_tokens or 0)

    def _key(self, authorization: str) -> ApiKey | None:
        try:
            self._keys.refresh()
        except LiuyiError as error:
            logger.error("the keys are as they were: %s", error)
        scheme, _, key = authorization.partition(" ")
        return self._keys.find(key.strip()) if scheme.lower() == "bearer" else None


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
    """Refuses bodies of more than `max_bytes` before they are read whole, and those not there after `patience_s`."""

    def __init__(self, app: ASGIApp, max_bytes: int, patience_s: float = 60.0) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"the body is larger than {self.max_bytes} bytes"
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            await error_response(413, too_large, headers={"Connection": "close"})(scope, receive, send)
            return
        read, more = 0, True
        until = asyncio.get_running_loop().time() + self.patience_s

        async def counted() -> Message:
            nonlocal read, more
            try:
                async with asyncio.timeout_at(until if more else None):
                    message = await receive()
            except TimeoutError:
                late = f"the body was not there within {self.patience_s:g} s"
                raise HTTPException(408, late, headers={"Connection": "close"}) from None
            read += len(message.get("body", b""))
            more = bool(message.get("more_body"))
            if read > self.max_bytes:
                raise HTTPException(413, too_large, headers={"Connection": "close"})
            return message

        await self.app(scope, counted, send)
