"""What an engine's process and its owner say to each other: typed MessagePack in frames, so nothing is unpickled.

A frame is the length of its payload, four bytes big-endian, and the payload. Requests and updates travel as the
dataclasses that the engine itself takes and gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from liuyi.core.errors import LiuyiError, ModelError, OutOfMemory
from liuyi.infer.errors import EngineError, RequestError
from liuyi.infer.request import Request, Update
from liuyi.infer.stats import Stats

HEADER_BYTES = 4
MAX_FRAME_BYTES = 1 << 30


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to open in the process."""

    model: str
    """A model folder or a GGUF file."""
    merged: str | None = None
    """The folder of an adapter that is merged into its weights when they are loaded."""
    weights: Literal["auto", "reference", "fp32", "bf16", "int8", "int4"] = "auto"
    kv: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Number formats, as `open_runner` has them."""
    max_slots: int = 64
    """Requests decoded at once."""
    max_tokens: int | None = None
    """Tokens of prompt and answer together; None for the model's context."""
    kv_tokens: int | None = None
    """Room for tokens in the cache of keys and values; None for what memory allows."""
    adapters: Mapping[str, str] = {}
    """Folders of LoRA adapters, by the names that requests choose them by."""
    speculate: str | None = None
    """`lookup` drafts from the text itself; else the folder or GGUF file of a draft model; None for neither."""
    stretch: float | None = 1.6
    """How much longer a step may take for prompts that are read beside generation; see `Pace`."""
    seed: int = 0


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the process has opened."""

    pid: int
    max_slots: int
    max_tokens: int
    kv_tokens: int
    """Tokens whose keys and values fit into the cache, which has them in blocks."""
    block_tokens: int
    runner: str
    """How it computes: formats of weights and of keys and values."""
    stop_ids: Sequence[int]
    """Tokens that end an answer."""
    adapters: Mapping[str, str]
    """Digests of the adapters that it was opened with, by name."""


class Pulse(msgspec.Struct, frozen=True, array_like=True):
    """How an engine is."""

    engine: Stats
    steps: int = 0
    """Steps taken since it was opened."""
    step_s: float = 0.0
    """For how long the step that is being taken has lasted."""


NO_PULSE = Pulse(Stats())
"""Of an engine that there is not."""


class _Message(msgspec.Struct, array_like=True, tag=True):
    pass


class Submit(_Message):
    """Answer these requests, all or none of them; `ids` name them from now on, and the first names them all."""

    ids: Sequence[int]
    requests: Sequence[Request]


class Cancel(_Message):
    """Nobody waits for these requests any more."""

    ids: Sequence[int]


class Embed(_Message):
    """Embed these texts; `id` names them, and cancels them, as that of a request does."""

    id: int
    texts: Sequence[Sequence[int]]


class LoadAdapter(_Message):
    """Make the adapter in a folder known by a name; `id` names the wish."""

    id: int
    name: str
    folder: str


class DropAdapter(_Message):
    """Let no new request find an adapter."""

    id: int
    name: str


class Stop(_Message):
    """End after the current step."""


ToEngine = Submit | Cancel | Embed | LoadAdapter | DropAdapter | Stop


class Ready(_Message):
    """The engine takes requests."""

    facts: EngineFacts


class Unusable(_Message):
    """The engine could not be opened."""

    error: LiuyiError


class Taken(_Message):
    """The requests with this first id are in the queue; the wish with this id is fulfilled."""

    id: int
    digest: str = ""
    """Of an adapter that was loaded."""


class Refused(_Message):
    """The requests with this first id can never be answered; the wish with this id cannot be fulfilled."""

    id: int
    error: LiuyiError


class Step(_Message):
    """What a step said, and how busy the engine is after it; also sent now and then without updates, as a heartbeat."""

    updates: Sequence[Update]
    pulse: Pulse


class Embedded(_Message):
    """The vectors of the texts with this id: float32, little-endian, [texts, hidden]."""

    id: int
    vectors: bytes
    hidden_size: int


FromEngine = Ready | Unusable | Taken | Refused | Step | Embedded

_ERRORS: dict[str, type[LiuyiError]] = {
    error.__name__: error for error in (LiuyiError, ModelError, OutOfMemory, EngineError, RequestError)
}


def _to_wire(value: object) -> object:
    if isinstance(value, LiuyiError):
        kind = type(value).__name__
        more = (value.param, value.code) if isinstance(value, RequestError) else (None, None)
        return (kind if kind in _ERRORS else LiuyiError.__name__, value.message, value.where, value.hint, *more)
    raise NotImplementedError(f"{type(value).__name__} is no part of a message")


def _from_wire(type: type, value: Any) -> object:
    if type is LiuyiError:
        kind, message, where, hint, param, code = value
        if kind == RequestError.__name__:
            return RequestError(message, param=param, code=code, hint=hint)
        return _ERRORS[kind](message, where=where, hint=hint)
    raise NotImplementedError(f"{type.__name__} is no part of a message")


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_wire)
_decoders = {
    side: msgspec.msgpack.Decoder(messages, dec_hook=_from_wire)
    for side, messages in (("spec", EngineSpec), ("to", ToEngine), ("from", FromEngine))
}


def frame(message: ToEngine | FromEngine | EngineSpec) -> bytes:
    """A message with its length before it."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def read_spec(payload: bytes) -> EngineSpec:
    """The payload of the first frame that a process gets."""
    return cast("EngineSpec", _decoders["spec"].decode(payload))


def read_to_engine(payload: bytes) -> ToEngine:
    """The payload of a frame to the engine."""
    return cast("ToEngine", _decoders["to"].decode(payload))


def read_from_engine(payload: bytes | bytearray) -> FromEngine:
    """The payload of a frame from the engine."""
    return cast("FromEngine", _decoders["from"].decode(payload))
