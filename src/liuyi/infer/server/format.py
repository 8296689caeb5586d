"""From a backend's deltas to OpenAI's objects, whole and in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from liuyi.infer.server.backend import AnswerReason, BackendInfo, Delta, TokenLogprob


@dataclass
class Answering:
    """One request being answered: what all its objects have in common, and what came so far."""

    id: str
    created: int
    model: str
    info: BackendInfo
    choices: int
    """Answers to each prompt."""
    tokens: dict[int, int] = field(default_factory=dict)
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    finish_reasons: dict[int, AnswerReason] = field(default_factory=dict)
    details: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def see(self, delta: Delta) -> None:
        """Take note of a delta."""
        if delta.finish_reason is not None:
            self.tokens[delta.index] = delta.completion_tokens
            self.prompt_tokens[delta.index // self.choices] = delta.prompt_tokens
            self.finish_reasons[delta.index] = delta.finish_reason
            if delta.detail:
                self.details[delta.index] = delta.detail

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written; a prompt with several answers counts once."""
        prompt, completion = sum(self.prompt_tokens.values()), sum(self.tokens.values())
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def object(self, kind: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A response object or chunk."""
        source = self.info.app_digest or self.info.model_digest
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"liuyi-{source[:12]}" if source else None,
            "choices": list(choices),
            **more,
        }


class ChatFormat:
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl-"
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, deltas: Sequence[Delta], asked_logprobs: bool) -> dict[str, Any]:
        """One whole answer."""
        tokens = [token for delta in deltas for token in delta.tokens]
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(delta.text for delta in deltas), "refusal": None},
            "logprobs": self._logprobs(tokens) if asked_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, delta: Delta) -> dict[str, Any]:
        """A further piece of an answer."""
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.tokens else {},
            "logprobs": self._logprobs(delta.tokens) if delta.tokens else None,
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        content = [_token(token) | {"top_logprobs": [_token(top) for top in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


class TextFormat:
    """`text_completion` and its chunks, which have the same shape."""

    id_prefix = "cmpl-"
    kind = chunk_kind = "text_completion"

    def choice(self, index: int, deltas: Sequence[Delta], asked_logprobs: bool) -> dict[str, Any]:
        """One whole answer."""
        tokens = [token for delta in deltas for token in delta.tokens]
        return {
            "index": index,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": self._logprobs(tokens) if asked_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Text needs no opening."""
        return None

    def piece(self, delta: Delta) -> dict[str, Any]:
        """A further piece of an answer."""
        return self.choice(delta.index, [delta], bool(delta.tokens))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [_text(token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_text(top): top.logprob for top in token.top} for token in tokens],
            "text_offset": [sum(map(len, texts[:at])) for at in range(len(texts))],
        }


def event(value: Mapping[str, Any] | str) -> bytes:
    """A server-sent event with a JSON value, or with a word."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.bytes)}


def _text(token: TokenLogprob) -> str:
    return token.bytes.decode("utf-8", errors="replace")
