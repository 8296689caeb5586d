"""One request to a server with the OpenAI API, streamed, with the time of every piece of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp

from liuyi.core.errors import LiuyiError
from liuyi.core.secrets import hide_secrets, hide_secrets_in
from liuyi.infer.load.answer import Answer, refusal
from liuyi.infer.load.connect import CONNECT_S
from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.workload import Ask, Prompt


class Endpoint:
    """A server's completions, or its chat completions, for one model."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        api: str,
        *,
        chat: bool = False,
        model: str = "",
        fields: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """`http` is of `connect`, `api` ends with `/v1/`; `fields` go into every request beside the prompt."""
        self.model = model
        self._http = http
        self._api = api
        self._chat = chat
        self._fields = dict(fields or {})
        self._timeout_s = timeout_s

    async def choose_model(self) -> None:
        """Take the server's first model, if none was named. Raises LiuyiError if there is no such server."""
        if self.model:
            return
        where = hide_secrets(self._api)
        try:
            listing = self._http.get(self._api + "models", allow_redirects=False)
            async with asyncio.timeout(CONNECT_S), listing as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            hint = "start one with: liuyi serve"
            raise LiuyiError(f"the server does not answer: {_said(error)}", where=where, hint=hint) from error
        if response.status != 200:
            hint = "put the key into $LIUYI_API_KEY, or name its variable with --api-key-env"
            said = refusal(response.status, body)
            raise LiuyiError(f"the server refuses: {said}", where=where, hint=hint if response.status == 401 else "")
        try:
            self.model = str(json.loads(body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise LiuyiError("this is no server with the OpenAI API, or it has no model", where=where) from error

    async def send(self, ask: Ask, due_s: float, began: float) -> Outcome:
        """Send a request now and follow its answer to the end; the clock is the event loop's."""
        loop = asyncio.get_running_loop()
        answer, sent_s = Answer(), loop.time() - began
        await self.follow(ask, answer, began)
        return answer.outcome(ask, due_s, sent_s)

    async def follow(self, ask: Ask, answer: Answer, began: float) -> None:
        """Send a request now and keep what comes of its answer until it ends."""
        clock, failure = asyncio.get_running_loop().time, ""
        path, body = "chat/completions" if self._chat else "completions", json.dumps(self._body(ask)).encode()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.post(self._api + path, data=body, allow_redirects=False) as response,
            ):
                with _ending_with_its_connection(response):
                    if response.status != 200:
                        answer.refuse(response.status, await response.read())
                    else:
                        async for piece in response.content.iter_any():
                            answer.keep(piece, clock() - began)
        except aiohttp.ClientError as error:
            failure = _said(error)
        except TimeoutError:
            failure = f"not answered within {self._timeout_s:g} s"
        answer.end(clock() - began, failure)

    def _body(self, ask: Ask) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "max_tokens": ask.max_tokens, "stream": True}
        asked |= {"stream_options": {"include_usage": True}} | self._fields
        if not self._chat:
            return asked | {"prompt": ask.prompt}
        return asked | {"messages": _messages(ask.prompt)}


@contextmanager
def _ending_with_its_connection(response: aiohttp.ClientResponse) -> Iterator[None]:
    """aiohttp hangs up where the framing of a body is broken, but leaves whoever reads the body to wait for more."""
    connection, content = response.connection, response.content
    if connection is None or connection.protocol is None:
        yield  # All of it has come.
        return

    def tell(_: object) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the answer's chunks are not framed as HTTP has them"))

    closed = connection.protocol.closed
    if closed is None:
        tell(closed)
        yield
        return
    # The connection may serve many requests: they take back all but one callback, which hears how it ends.
    closed.remove_done_callback(_heard)
    closed.add_done_callback(_heard)
    closed.add_done_callback(tell)
    try:
        yield
    finally:
        closed.remove_done_callback(tell)


def _heard(closed: asyncio.Future[None]) -> None:
    """An exception that nobody asks for is logged, though the request has failed with it."""
    if not closed.cancelled():
        closed.exception()


def _messages(prompt: Prompt) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _said(error: Exception) -> str:
    said = hide_secrets_in(" ".join(str(error).split()))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
