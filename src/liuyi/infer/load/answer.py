"""What comes of one request: bytes with the time of each, kept while they come and read as events later.

A client that reads each event when it comes takes a core from the server that it measures, and is late for the next
piece. So a piece costs no more than its time until 64 KiB have come, some 250 tokens; those are read at once then.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import UNSET

from liuyi.infer.load.outcome import Outcome, Status
from liuyi.infer.load.workload import Ask
from liuyi.infer.sse import Lines

FULL = (429, 503)
"""Statuses with which a server refuses because it is full."""
KEPT_BYTES = 1 << 16
"""So much of an answer is kept before it is read."""


class Delta(msgspec.Struct):
    """What a choice of a conversation brings."""

    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    """A choice of an event, with `text` or with `delta`."""

    text: Any = UNSET
    delta: Delta | None = None
    finish_reason: Any = None

    @property
    def has_text(self) -> bool:
        """Whether it brings more of the answer, rather than its role or its end."""
        if self.text is not UNSET:
            # A token that ends within a character gives an empty text with some servers: it has come all the same.
            return bool(self.text) or not self.finish_reason
        delta = self.delta or Delta()
        return bool(delta.content or delta.reasoning_content or delta.tool_calls)


class PromptDetails(msgspec.Struct):
    """What the server counts of a prompt."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What the server counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Event(msgspec.Struct):
    """What of an event is looked at."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_events = msgspec.json.Decoder(Event)


class Answer:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.reason = ""
        """Why there is no whole answer."""
        self.ended_s: float | None = None
        self.pieces_s: list[float] = []
        """When each piece came; `read` brings them up to date."""
        self._usage = Usage()
        self._lines = Lines()
        self._kept: list[tuple[float, bytes]] = []
        self._kept_bytes = 0

    def keep(self, piece: bytes, now_s: float) -> None:
        """Bytes have come."""
        self._kept.append((now_s, piece))
        self._kept_bytes += len(piece)
        if self._kept_bytes >= KEPT_BYTES:
            self.read()

    def read(self) -> None:
        """Read the events whose ends have come; the time of each is that of its end."""
        for now_s, piece in self._kept:
            for line in self._lines.of(piece):
                self._line(line, now_s)
        self._kept.clear()
        self._kept_bytes = 0

    def refuse(self, status: int, body: bytes) -> None:
        """The server did not begin to answer."""
        self.status, self.reason = "rejected" if status in FULL else "failed", refusal(status, body)

    def end(self, now_s: float, failure: str = "") -> None:
        """Nothing more comes: the stream has ended, or failed for a reason."""
        self.ended_s = now_s
        self.read()
        if not failure:
            self._line(self._lines.rest(), now_s)
        if failure or self.status is None:
            self._fail(failure or "the answer broke off")

    def outcome(self, ask: Ask, due_s: float, sent_s: float) -> Outcome:
        """What became of it, after its end.

        Tokens are those the server counted; where it counts none, a piece is taken for a token.
        """
        assert self.status is not None
        assert self.ended_s is not None
        details = self._usage.prompt_tokens_details or PromptDetails()
        return Outcome(
            status=self.status,
            reason=self.reason,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=self.ended_s,
            pieces_s=tuple(self.pieces_s),
            asked_prompt_tokens=ask.prompt_tokens,
            prompt_tokens=self._usage.prompt_tokens or 0,
            cached_tokens=details.cached_tokens or 0,
            completion_tokens=self._usage.completion_tokens or len(self.pieces_s),
        )

    def _line(self, line: str, now_s: float) -> None:
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self.status = self.status or "ok"
            return
        try:
            event = _events.decode(data)
        except (ValueError, RecursionError):
            self._fail("an event of the answer is not as OpenAI's API has it")
            return
        if event.error is not None:
            self._fail(f"the answer broke off: {_message(event.error)}")
            return
        self._usage = event.usage or self._usage
        if any(choice.has_text for choice in event.choices or ()):
            self.pieces_s.append(now_s)

    def _fail(self, reason: str) -> None:
        """There will be no whole answer; the first reason stays."""
        if self.status != "failed":
            self.status, self.reason = "failed", reason


def refusal(status: int, body: bytes) -> str:
    """A status that is no success with what its body says, in one line."""
    try:
        said = _message(json.loads(body))
    except (ValueError, RecursionError):
        said = ""
    return f"{status} {said}".strip()


def _message(body: Any) -> str:
    """What an error's body says, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:200]
