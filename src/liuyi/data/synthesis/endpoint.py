"""A server with the OpenAI API as a model to ask. Nothing that it sends is trusted to be what it should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from liuyi.core.errors import DataError
from liuyi.core.secrets import hide_secrets
from liuyi.data.retry import retry_after_s
from liuyi.data.synthesis.ask import Answer, Ask, Failed
from liuyi.data.text import mend
from liuyi.infer.address import http_client

LARGEST_ANSWER_BYTES = 8_000_000
_DETAIL_CHARS = 200
_CONNECT_S = 10.0
_FATAL = {401: "wrong API key", 402: "payment required", 403: "not allowed", 404: "no such model or address"}


class Endpoint(Protocol):
    """Whatever answers."""

    where: str
    """How people know it."""
    model: str
    """The model that answers."""

    async def start(self) -> None:
        """Get ready. Raises DataError if there is nobody to ask."""

    async def ask(self, ask: Ask) -> Answer:
        """The answer. Raises Failed."""

    async def close(self) -> None:
        """Let go of it."""


class HttpEndpoint:
    """`/v1/chat/completions` of a server, and `/v1/completions` for raw prompts."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        timeout_s: float = 120.0,
        structured: bool = False,
    ) -> None:
        """`url` ends with `/v1`; `key` goes into a header only; `structured`: it takes `response_format`.

        Raises DataError for a key that no header can hold, without showing it.
        """
        self.where = hide_secrets(url)
        self.model = model
        self._key = _header_value(key)
        self._timeout_s = timeout_s
        self._structured = structured
        self._base = f"{url.rstrip('/')}/"
        self._certificates = httpx.create_ssl_context()
        self._idle: list[httpx.AsyncClient] = []

    async def start(self) -> None:
        """Take the server's first model, if none was named. Raises DataError if it cannot be told."""
        if self.model:
            return
        try:
            body = _object(await self._exchange("GET", "models", None))
            self.model = mend(str(body["data"][0]["id"]))
        except Failed as failed:
            raise DataError(f"the endpoint does not tell its models: {failed}", where=self.where) from None
        except (LookupError, TypeError):
            raise DataError(
                "the endpoint names no model", where=self.where, hint="name one: `endpoint_model`"
            ) from None

    async def ask(self, ask: Ask) -> Answer:
        chat = not isinstance(ask.prompt, str)
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": ask.model or self.model,
            ("messages" if chat else "prompt"): ask.prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": ask.seed,
        }
        if ask.stop:
            body["stop"] = ask.stop
        if ask.schema is not None and self._structured:
            schema = {"name": "answer", "schema": ask.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        said = _object(await self._exchange("POST", "chat/completions" if chat else "completions", body))
        return _answer(said, ask.model or self.model, chat)

    async def close(self) -> None:
        for client in self._idle:
            await client.aclose()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of its own for each request at once, used again after an answer.

        One client for all would keep their connections in one pool, which it goes through several times for every
        request, which costs more CPU time than all the rest. A client whose request was broken off is not used
        again: its only connection can stay taken for ever (github.com/encode/httpcore/issues/1093).
        """
        client = self._idle.pop() if self._idle else self._connect()
        try:
            yield client
        except BaseException:
            await client.aclose()
            raise
        self._idle.append(client)

    def _connect(self) -> httpx.AsyncClient:
        return http_client(
            self._base,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=1),
            verify=self._certificates,
        )

    async def _exchange(self, method: str, path: str, body: Any) -> bytes:
        """The body of a good response. Raises Failed."""
        try:
            async with (
                self._client() as client,
                asyncio.timeout(self._timeout_s),
                client.stream(method, path, json=body) as response,
            ):
                content = await _bounded(response)
        except TimeoutError:
            raise Failed("timed out", f"no whole answer within {self._timeout_s:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failed("no connection", str(error)) from None
        except httpx.DecodingError as error:
            raise Failed("not JSON", str(error)) from None
        except httpx.HTTPError as error:
            raise Failed("connection closed", str(error) or type(error).__name__) from None
        if self._key:
            content = content.replace(self._key.encode(), b"***")
        if response.status_code != 200:
            raise _refusal(response, content)
        kind = response.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if "json" not in kind and not content.lstrip().startswith(b"{"):
            raise Failed("wrong content type", f"{kind}: {_shown(content)}")
        return content


def _header_value(key: str) -> str:
    """The key without the end of line that a file leaves behind it.

    The HTTP library shows a header that it refuses in its error, so a key must not come that far.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise DataError("the endpoint's key holds characters that a header cannot hold", hint="copy it once more")
    return key


async def _bounded(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER_BYTES:
            raise Failed("too large", f"more than {LARGEST_ANSWER_BYTES:,} bytes")
    return b"".join(parts)


def _refusal(response: httpx.Response, content: bytes) -> Failed:
    status, detail = response.status_code, _shown(content)
    if status in _FATAL:
        return Failed(_FATAL[status], detail, retry=False, fatal=True)
    if status in (429, 503):
        reason = "rate limited" if status == 429 else "overloaded"
        return Failed(reason, detail, retry_after_s=retry_after_s(response.headers.get("retry-after", "")))
    if status in (408, 409, 425) or status >= 500:
        return Failed("server error", f"{status} {detail}")
    return Failed("refused", f"{status} {detail}", retry=False)


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Failed("not JSON", _shown(content)) from None
    if not isinstance(value, dict):
        raise Failed("not JSON", f"a {type(value).__name__}, not an object")
    return value


def _answer(said: dict[str, Any], model: str, chat: bool) -> Answer:
    choices = said.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Failed("no choices", _shown(json.dumps(said).encode()))
    choice = choices[0]
    message = choice.get("message") if chat else choice
    text = message.get("content" if chat else "text") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Failed("empty answer", f"finish_reason {choice.get('finish_reason')!r}")
    usage = said.get("usage") if isinstance(said.get("usage"), dict) else {}
    named = said.get("model")
    return Answer(
        text=mend(text),
        finish="length" if choice.get("finish_reason") == "length" else "stop",
        model=mend(named) if isinstance(named, str) and named else model,
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; None for what cannot be one. No context is as long as 2³¹."""
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _shown(content: bytes) -> str:
    """The beginning of a body in one line, for people."""
    return " ".join(content[: 4 * _DETAIL_CHARS].decode(errors="replace").split())[:_DETAIL_CHARS]
