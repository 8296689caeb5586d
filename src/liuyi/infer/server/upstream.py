"""An engine that is already running, with the OpenAI API: vLLM, llama.cpp, or any other."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from liuyi.core.errors import LiuyiError
from liuyi.core.secrets import hide_secrets
from liuyi.infer.address import http_client, http_url
from liuyi.infer.errors import EngineError, RequestError, Unavailable
from liuyi.infer.server.backend import BackendInfo, Load
from liuyi.infer.server.errors import UnknownModel, error_body

KINDS = {"vllm": "http://127.0.0.1:8000/v1", "llama.cpp": "http://127.0.0.1:8080/v1", "openai": ""}
"""Kinds of engines, and where they listen unless told otherwise."""
KEY_VARIABLE = "LIUYI_BACKEND_API_KEY"
_CHECK_S = 2.0
_MODELS_S = 10.0
"""How long a backend may take to tell its models."""
_RETRY_S = 5


@dataclass(frozen=True)
class Place:
    """Where an engine is."""

    kind: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """`vllm`, `llama.cpp`, or one of the kinds with a URL: `openai:https://host/v1`.

        Raises LiuyiError if it is none of these.
        """
        kind, _, url = text.partition(":")
        if kind not in KINDS:
            raise LiuyiError(f"there is no kind of backend '{kind}'", hint=f"known: {', '.join(KINDS)}, or KIND:URL")
        if not (url or KINDS[kind]):
            raise LiuyiError(f"'{text}' names no URL", hint=f"{kind}:http://host:port/v1")
        return cls(kind, http_url(url or KINDS[kind]))

    @property
    def shown(self) -> str:
        """The URL as people and records may see it."""
        return hide_secrets(self.url)

    def beside(self, path: str) -> str:
        """The URL of a path that is not under `/v1`."""
        return f"{self.url.removesuffix('/v1')}/{path}"


class Upstream:
    """A connection to such an engine. Its errors come back as ours, or in OpenAI's shape."""

    def __init__(
        self, place: Place, *, model_digest: str = "", transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`model_digest` says which artifact the engine serves, where its owner knows; `transport` is for tests.

        The engine's own key is taken from the environment.
        """
        self.place = place
        self.info = BackendInfo(
            model_digest=model_digest, made_with={"backend": place.kind, "backend_url": place.shown}
        )
        self.inside = 0
        self.models: list[dict[str, Any]] = []
        key = os.environ.get(KEY_VARIABLE, "")
        self._http = http_client(
            f"{place.url}/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(10, read=None, pool=None),
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )
        self._alive = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask for its models, and look now and then whether it is there. Raises EngineError if it is not."""
        await self.refresh()
        self._watch = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Hang up."""
        if self._watch is not None:
            self._watch.cancel()
        await self._http.aclose()

    def busy(self) -> Load:
        """How busy it is, as far as requests through here tell."""
        return Load(running=self.inside, alive=self._alive, state="ready" if self._alive else "unreachable")

    def model(self, name: str) -> dict[str, Any]:
        """What the engine says of one of its models. Raises UnknownModel if it has none of that name."""
        found = {model["id"]: model for model in self.models}
        if name not in found:
            raise UnknownModel(name, list(found))
        return found[name]

    async def refresh(self) -> None:
        """Ask for its models again. Raises EngineError if it cannot be reached, or does not speak the API."""
        try:
            async with asyncio.timeout(_MODELS_S):
                response = await self.send("GET", "models")
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        except (httpx.HTTPError, TimeoutError) as error:
            self._alive = False
            raise Unavailable(
                f"the backend does not tell its models: {_said(error)}", retry_after_s=_RETRY_S
            ) from error
        models = as_object(response.content).get("data")
        if response.status_code != 200 or not isinstance(models, list):
            self._alive = False
            raise EngineError(f"the backend answers /models with status {response.status_code}", where=self.place.shown)
        self.models = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Its response, of which the body is yet to be read and which has to be closed.

        Raises RequestError if the body cannot be sent as JSON, Unavailable if the engine cannot be reached.
        """
        try:
            request = self._http.build_request(method, path, json=body)
        except (ValueError, RecursionError) as error:
            raise RequestError("the body holds a number or a text that JSON cannot carry") from error
        try:
            response = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            self._alive = False
            raise Unavailable(f"the backend cannot be reached: {_said(error)}", retry_after_s=_RETRY_S) from error
        self._alive = True
        return response

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            try:
                await self.refresh()
            except EngineError:
                continue


def refusal(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Status and body, in OpenAI's shape, for a response of the backend that is no answer."""
    status = response.status_code
    if status in (401, 403):
        return 502, error_body(502, f"the backend refused this server's key; set ${KEY_VARIABLE}", code="backend_key")
    found = as_object(response.content)
    error = found.get("error", found)
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    if not isinstance(message, str):
        message = response.content.decode(errors="replace")[:500] or f"the backend answered {status}"
    param, code = (error.get("param"), error.get("code")) if isinstance(error, dict) else (None, None)
    body = error_body(
        status,
        message,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )
    return (status if 400 <= status < 600 else 502), body


def as_object(content: bytes) -> dict[str, Any]:
    """The JSON object that it is; empty if it is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
