"""One request on its way through the proxy: what is changed in it, and what is read from its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from liuyi.infer.server.follow import Follow
from liuyi.infer.server.guard import Charge
from liuyi.infer.server.protocol import ChatCompletionBody, CompletionBody
from liuyi.infer.server.service import UNSAID
from liuyi.infer.server.upstream import as_object

_PARAMETERS = {*ChatCompletionBody.model_fields, *CompletionBody.model_fields} - UNSAID - {"suffix"}
"""What the ledger keeps. Fields that only the engine knows may hold text of the prompt."""


class Passing:
    """Asks a stream for its usage, for the metrics' sake, and takes that out again where the client did not ask."""

    def __init__(self, asked: Mapping[str, Any], follow: Follow, charge: Charge | None) -> None:
        self.asked = dict(asked)
        self.charge = charge
        self.streams = bool(asked.get("stream"))
        self.id = ""
        self.usage: dict[str, int] = {}
        self.is_complete = False
        """The stream has told its end."""
        self.has_failed = False
        """The engine has told an error in the stream."""
        self._follow = follow
        self._pieces = 0
        self._reasons: dict[int, str] = {}
        options = asked.get("stream_options")
        self._shows_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self.body = dict(asked)
        if self.streams:
            self.body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}

    def see_line(self, line: str) -> bytes:
        """Take note of a line of the stream; what the client gets of it, empty for nothing."""
        if not line.startswith("data:"):
            return f"{line}\n".encode()
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.is_complete = True
        else:
            chunk = as_object(data.encode())
            self.has_failed = self.has_failed or bool(chunk.get("error"))
            self._see(chunk)
            if not chunk.get("choices") and isinstance(chunk.get("usage"), dict) and not self._shows_usage:
                return b""
        return f"data: {data}\n\n".encode()

    def see_whole(self, found: Mapping[str, Any]) -> None:
        """Take note of a whole answer."""
        self._see(found)

    def detail(self) -> dict[str, Any]:
        """What the ledger keeps."""
        return {
            "model": self.asked["model"],
            "parameters": {name: value for name, value in self.asked.items() if name in _PARAMETERS},
            "usage": self.usage,
            "finish_reasons": [reason for _, reason in sorted(self._reasons.items())],
        }

    def end(self, status: int) -> None:
        """All is over."""
        read, written = self.usage.get("prompt_tokens", 0), self.usage.get("completion_tokens", 0)
        self._follow.finish(status, prompt_tokens=read, completion_tokens=written)
        if self.charge is not None and status in (200, 499):
            self.charge.used_tokens = (read + written) or self.charge.estimated_tokens + self._pieces

    def _see(self, found: Mapping[str, Any]) -> None:
        if isinstance(found.get("id"), str):
            self.id = found["id"]
        usage = found.get("usage")
        if isinstance(usage, dict):
            self.usage = {name: count for name, count in usage.items() if isinstance(count, int)}
        for choice in found.get("choices") or ():
            if not isinstance(choice, dict):
                continue
            self._pieces += 1
            given = choice.get("index")
            index = given if isinstance(given, int) else 0
            self._follow.piece(index)
            if isinstance(choice.get("finish_reason"), str):
                self._reasons[index] = choice["finish_reason"]
