"""Who answers in `liuyi chat`: a backend in this process, or a server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from liuyi.core.errors import LiuyiError
from liuyi.infer.address import api_url, http_client
from liuyi.infer.sse import lines_of

if TYPE_CHECKING:
    from liuyi.infer.server.backend import ChatBackend

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class TalkOptions:
    """How to answer; None leaves it to whoever answers."""

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """A further piece of an answer."""

    text: str
    tokens: int = 0
    """Tokens of the whole answer, once known."""
    notes: str = ""
    """What else is known of the answer."""


class Talker(Protocol):
    """Whoever answers."""

    name: str

    async def open(self) -> None:
        """Get ready. Raises LiuyiError if that fails."""

    def answer(self, messages: Messages) -> AsyncIterator[Piece]:
        """Answer the last message. Raises LiuyiError if it is refused."""

    async def close(self) -> None:
        """Free what is held."""


class LocalTalker:
    """A backend in this process."""

    def __init__(self, name: str, backend: ChatBackend, options: TalkOptions) -> None:
        self.name = name
        self._backend = backend
        self._options = options

    async def open(self) -> None:
        """Start the backend."""
        await self._backend.start()

    async def answer(self, messages: Messages) -> AsyncIterator[Piece]:
        """Stream the backend's deltas."""
        from liuyi.infer.server.backend import ChatRequest, Options, in_turn

        asked = self._options
        options = Options(temperature=asked.temperature, max_tokens=asked.max_tokens, seed=asked.seed)
        deltas = in_turn(await self._backend.chat(ChatRequest(messages=messages, options=options)))
        async with aclosing(deltas):
            async for delta in deltas:
                notes = ", ".join(f"{name}: {value}" for name, value in delta.detail.items())
                yield Piece(delta.text, delta.completion_tokens, notes)

    async def close(self) -> None:
        """Stop the backend."""
        await self._backend.close()


class ServerTalker:
    """A server with the OpenAI API."""

    def __init__(self, url: str, model: str | None, key: str, options: TalkOptions) -> None:
        """Raises LiuyiError for a URL that is none."""
        import httpx

        self.name = model or ""
        base_url = api_url(url)
        self._url = base_url.removesuffix("/v1/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http_client(base_url, headers=headers, timeout=httpx.Timeout(10, read=None))
        self._options = options

    async def open(self) -> None:
        """Ask the server for its first model, if none was named."""
        if not self.name:
            models = (await self._send("GET", "models")).get("data") or []
            if not models:
                raise LiuyiError("the server has no model", where=self._url)
            try:
                self.name = str(models[0]["id"])
            except (LookupError, TypeError):
                raise self._foreign() from None

    async def answer(self, messages: Messages) -> AsyncIterator[Piece]:
        """Read the server's events."""
        import httpx

        chosen = {"temperature": self._options.temperature, "max_tokens": self._options.max_tokens}
        chosen |= {"seed": self._options.seed}
        body = {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in chosen.items() if value is not None},
        }
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, await response.aread())
                async for line in lines_of(response):
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield self._piece(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def _send(self, method: str, path: str) -> dict[str, Any]:
        import httpx

        try:
            response = await self._http.request(method, path)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refused(response.status_code, response.content)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._foreign()
        return found

    def _piece(self, data: str) -> Piece:
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise LiuyiError(str(chunk["error"].get("message", "the answer broke off")), where=self._url)
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            return Piece(text, (chunk.get("usage") or {}).get("completion_tokens", 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._foreign() from None

    def _foreign(self) -> LiuyiError:
        return LiuyiError("this is no server with the OpenAI API", where=self._url)

    def _refused(self, status: int, body: bytes) -> LiuyiError:
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = body.decode(errors="replace")[:200]
        hint = "put the key into $LIUYI_API_KEY, or name its variable with --api-key-env" if status == 401 else ""
        return LiuyiError(message or f"the server answered {status}", where=self._url, hint=hint)

    def _unreachable(self, error: Exception) -> LiuyiError:
        return LiuyiError(f"the server cannot be reached: {error}", where=self._url, hint="start it with: liuyi serve")
