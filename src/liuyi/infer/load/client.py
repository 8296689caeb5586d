"""One request to a server with the OpenAI API, streamed, with the time of every piece of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx

from liuyi.core.errors import LiuyiError
from liuyi.infer.load.outcome import Outcome, Status
from liuyi.infer.load.workload import Ask, Prompt
from liuyi.infer.sse import lines_of

FULL = (429, 503)
"""Statuses with which a server refuses because it is full."""
CONNECT_S = 10.0


class Endpoint:
    """A server's completions, or its chat completions, for one model."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        chat: bool = False,
        model: str = "",
        fields: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """`http` has the server's `/v1/` as its base; `fields` go into every request beside the prompt."""
        self.model = model
        self._http = http
        self._chat = chat
        self._fields = dict(fields or {})
        self._timeout_s = timeout_s

    async def choose_model(self) -> None:
        """Take the server's first model, if none was named. Raises LiuyiError if there is no such server."""
        if self.model:
            return
        where = str(self._http.base_url)
        try:
            response = await self._http.get("models", timeout=CONNECT_S)
            self.model = str(response.raise_for_status().json()["data"][0]["id"])
        except httpx.HTTPError as error:
            raise LiuyiError(f"the server does not answer: {_said(error)}", where=where) from error
        except (ValueError, LookupError, TypeError) as error:
            raise LiuyiError("this is no server with the OpenAI API, or it has no model", where=where) from error

    async def send(self, ask: Ask, due_s: float, began: float) -> Outcome:
        """Send a request now and follow its answer to the end; the clock is the event loop's."""
        loop = asyncio.get_running_loop()
        answer = _Answer()
        path, body = "chat/completions" if self._chat else "completions", self._body(ask)
        sent = loop.time() - began
        try:
            async with asyncio.timeout(self._timeout_s), self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    answer.refused(response.status_code, await response.aread())
                else:
                    async for line in lines_of(response):
                        if line.startswith("data:"):
                            answer.read(line[5:].strip(), loop.time() - began)
        except httpx.HTTPError as error:
            answer.fail(_said(error))
        except TimeoutError:
            answer.fail(f"not answered within {self._timeout_s:g} s")
        if answer.status is None:
            answer.fail("the answer broke off")
        return answer.outcome(ask, due_s, sent, loop.time() - began)

    def _body(self, ask: Ask) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "max_tokens": ask.max_tokens, "stream": True}
        asked |= {"stream_options": {"include_usage": True}} | self._fields
        if not self._chat:
            return asked | {"prompt": ask.prompt}
        return asked | {"messages": _messages(ask.prompt)}


def _messages(prompt: Prompt) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


class _Answer:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self._reason = ""
        self._pieces_s: list[float] = []
        self._usage: dict[str, Any] = {}

    def read(self, data: str, now_s: float) -> None:
        """An event has come."""
        if data == "[DONE]":
            self.status = self.status or "ok"
            return
        try:
            event = json.loads(data)
            if "error" in event:
                self.fail(f"the answer broke off: {_message(event)}")
                return
            self._usage = event.get("usage") or self._usage
            if any(map(_has_text, event.get("choices") or ())):
                self._pieces_s.append(now_s)
        except (ValueError, TypeError, AttributeError):
            self.fail("an event of the answer is not as OpenAI's API has it")

    def refused(self, status: int, body: bytes) -> None:
        """The server did not begin to answer."""
        try:
            said = _message(json.loads(body))
        except ValueError:
            said = ""
        self.status, self._reason = "rejected" if status in FULL else "failed", f"{status} {said}".strip()

    def fail(self, reason: str) -> None:
        """There will be no whole answer; the first reason stays."""
        if self.status != "failed":
            self.status, self._reason = "failed", reason

    def outcome(self, ask: Ask, due_s: float, sent_s: float, ended_s: float) -> Outcome:
        """Tokens are those the server counted; where it counts none, a piece is taken for a token."""
        assert self.status is not None
        details = self._usage.get("prompt_tokens_details") or {}
        return Outcome(
            status=self.status,
            reason=self._reason,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=ended_s,
            pieces_s=tuple(self._pieces_s),
            asked_prompt_tokens=ask.prompt_tokens,
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            completion_tokens=self._usage.get("completion_tokens") or len(self._pieces_s),
        )


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether a choice of an event brings more of the answer, rather than its role or its end."""
    if "text" in choice:
        # A token that ends within a character gives an empty text with some servers: it has come all the same.
        return bool(choice["text"]) or not choice.get("finish_reason")
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))


def _message(body: Any) -> str:
    """What an error's body says, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:200]


def _said(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
