"""From a backend's deltas to OpenAI's objects, whole and in chunks."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from liuyi.infer.server.backend import AnswerReason, BackendInfo, CallDelta, Delta, TokenLogprob

encode = msgspec.json.Encoder().encode
"""JSON as bytes."""


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
    cached_tokens: dict[int, int] = field(default_factory=dict)
    finish_reasons: dict[int, AnswerReason] = field(default_factory=dict)
    details: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def end(self, delta: Delta) -> None:
        """Take note of the last delta of an answer."""
        assert delta.finish_reason is not None
        self.tokens[delta.index] = delta.completion_tokens
        prompt = delta.index // self.choices
        self.prompt_tokens[prompt] = delta.prompt_tokens
        # A prompt's second answer finds what its first one read.
        self.cached_tokens[prompt] = min(delta.cached_tokens, self.cached_tokens.get(prompt, delta.cached_tokens))
        self.finish_reasons[delta.index] = delta.finish_reason
        if delta.detail:
            self.details[delta.index] = delta.detail

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and written; a prompt with several answers counts once."""
        prompt, completion = sum(self.prompt_tokens.values()), sum(self.tokens.values())
        return {
            "prompt_tokens": prompt,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached_tokens.values())},
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def object(self, kind: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A response object."""
        made_by = (self.info.app_digest or self.info.model_digest, self.info.adapter_digest)
        fingerprint = "-".join(digest[:12] for digest in made_by if digest)
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"liuyi-{fingerprint}" if fingerprint else None,
            "choices": list(choices),
            **more,
        }

    def around(self, kind: str, **more: Any) -> tuple[bytes, bytes]:
        """What stands before and after the choice in the events of a stream, which is the same in all of them."""
        before, choices, after = event(self.object(kind, [], **more)).rpartition(b'"choices":[')
        return before + choices, after


class ChatFormat:
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl-"
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, deltas: Sequence[Delta], asked_logprobs: bool) -> dict[str, Any]:
        """One whole answer."""
        tokens = [token for delta in deltas for token in delta.tokens]
        text = "".join(delta.text for delta in deltas)
        calls: dict[int, dict[str, Any]] = {}
        for call in (call for delta in deltas for call in delta.calls):
            if call.name is not None:
                calls[call.index] = _call(call)
            else:
                calls[call.index]["function"]["arguments"] += call.arguments
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = list(calls.values())
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(tokens) if asked_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the chunk that says who speaks."""
        return _chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def pieces(self, delta: Delta) -> list[dict[str, Any]]:
        """The choices of a delta's chunks: text, then each piece of a call; the last tells the reason for the end."""
        chunks = []
        if delta.text or delta.tokens:
            chunks.append(_chunk(delta.index, {"content": delta.text}))
        for call in delta.calls:
            told = _call(call) if call.name is not None else {"function": {"arguments": call.arguments}}
            chunks.append(_chunk(delta.index, {"tool_calls": [{"index": call.index} | told]}))
        if not chunks and delta.finish_reason is not None:
            chunks.append(_chunk(delta.index, {}))
        if delta.tokens:
            chunks[0]["logprobs"] = self._logprobs(delta.tokens)
        if chunks:
            chunks[-1]["finish_reason"] = delta.finish_reason
        return chunks

    def _logprobs(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        content = [_token(token) | {"top_logprobs": [_token(top) for top in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


class TextFormat:
    """`text_completion` and its chunks, which have the same shape."""

    id_prefix = "cmpl-"
    kind = chunk_kind = "text_completion"

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}

    def choice(self, index: int, deltas: Sequence[Delta], asked_logprobs: bool) -> dict[str, Any]:
        """One whole answer."""
        tokens = [token for delta in deltas for token in delta.tokens]
        return {
            "index": index,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": self._logprobs(index, tokens) if asked_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Text needs no opening."""
        return None

    def pieces(self, delta: Delta) -> list[dict[str, Any]]:
        """The choice of a delta's chunk, if it has anything to say."""
        if not (delta.text or delta.tokens or delta.finish_reason):
            return []
        return [self.choice(delta.index, [delta], bool(delta.tokens))]

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`text_offset` goes on from chunk to chunk. Nothing is said of the first token of a prompt."""
        place = self._places.setdefault(index, _Place())
        return {
            "tokens": [_named(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {_named(top): top.logprob for top in token.top} for token in tokens
            ],
            "text_offset": [place.pass_by(token.bytes) for token in tokens],
        }


class _Place:
    """How many characters of a text its tokens have made so far."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def pass_by(self, piece: bytes) -> int:
        """Where a token with these bytes begins."""
        begin = self._characters
        self._characters += len(self._decoder.decode(piece))
        return begin


def _chunk(index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call(call: CallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def event(value: Mapping[str, Any] | str) -> bytes:
    """A server-sent event with a JSON value, or with a word."""
    return b"data: %b\n\n" % (value.encode() if isinstance(value, str) else encode(value))


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.bytes)}


def _named(token: TokenLogprob) -> str:
    """The token's text or, if it is a part of a character, its bytes as OpenAI writes them; no two tokens are alike."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _text(token: TokenLogprob) -> str:
    return token.bytes.decode("utf-8", errors="replace")
