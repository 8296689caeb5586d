"""What the server needs of whatever answers: a model, or an application built on one.

A backend is small. An application that answers at once may be written as:

    class Desk:
        info = BackendInfo(app_digest=digest)

        async def start(self) -> None: ...

        async def chat(self, request: ChatRequest) -> Deltas:
            return Yielded(self._answer(request))

        async def _answer(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
            text, detail = await asyncio.to_thread(self.cascade.answer, request.messages)
            yield Delta(text=text, finish_reason="stop", detail=detail)

        def busy(self) -> Load:
            return Load()

        async def close(self) -> None: ...

`chat` refuses before any work is done, by raising `RequestError` (400) or `Overloaded` (429).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from liuyi.infer.beam import BeamOptions
from liuyi.infer.request import FinishReason, Grammar
from liuyi.infer.tools.calls import Function

AnswerReason = FinishReason | Literal["tool_calls"]
"""`tool_calls`: the model has called functions, and waits for their results."""


@dataclass(frozen=True)
class BackendInfo:
    """Where answers come from, for `/v1/models` and the ledger."""

    model_digest: str = ""
    app_digest: str | None = None
    max_tokens: int | None = None
    """Tokens of prompt and answer together; None where that is no limit of the backend."""
    adapter_digest: str | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """What else made the answers, for the ledger: the digest of the chat template, how the model was run."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to continue; None means that the client left it to the backend. Meanings as in `infer.request.Request`."""

    n: int = 1
    """Answers to give to the one prompt."""
    best_of: int = 1
    """Answers to generate, of which the `n` with the highest mean log-probability are given; `n` if it is smaller."""
    beam: BeamOptions | None = None
    """Search for the most probable answers, with as many beams, rather than draw them."""
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """Answer `i` of several uses `seed + i`."""
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    priority: int = 0
    adapter: str | None = None
    grammar: Grammar | None = None
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """Functions that the model may call, and whether it must."""

    functions: Sequence[Function]
    required: bool = False
    """The answer has to be a call; otherwise that is left to the model."""
    only: str | None = None
    """The one function that the answer has to call, and nothing else."""
    allowed: frozenset[str] | None = None
    """Those that may be called; the model is told of the others, too. None means all."""
    parallel: bool = True
    """Several calls in one answer are welcome."""

    @property
    def choices(self) -> list[Function]:
        """The functions that may be called."""
        return [function for function in self.functions if self.allowed is None or function.name in self.allowed]


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to continue: OpenAI messages whose content is text.

    The arguments of `tool_calls` in it are objects, as chat templates want them; text where they are no JSON object.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: ToolUse | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking`."""
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Prompts to continue as they are, each a text or token ids."""

    prompts: Sequence[str | Sequence[int]]
    echo: bool = False
    """The answers begin with the prompt; with its log-probabilities too, if they are asked for."""
    options: Options = field(default_factory=Options)


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token with its log-probability, and the most probable tokens at its place."""

    bytes: bytes
    logprob: float | None
    """None for the first token of a prompt, which nothing stands before."""
    top: tuple[TokenLogprob, ...] = ()


class CallDelta(msgspec.Struct, frozen=True):
    """A further piece of a tool call."""

    index: int
    """Number of the call in its answer."""
    id: str | None = None
    """Set, as `name` is, in the first piece of a call."""
    name: str | None = None
    arguments: str = ""
    """JSON, as the model wrote it."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A further piece of one answer."""

    index: int = 0
    """Which answer: prompt number × n + choice."""
    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    """The new tokens, when log-probabilities were asked for."""
    calls: tuple[CallDelta, ...] = ()
    finish_reason: AnswerReason | None = None
    """Set on the last delta of each answer, as are the fields below."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of them that were in the prefix cache."""
    completion_tokens: int = 0
    detail: Mapping[str, Any] = {}
    """What the backend wants recorded about this answer, such as the rung that gave it."""


@dataclass(frozen=True)
class Load:
    """How busy a backend is."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    alive: bool = True
    """False when it cannot answer now."""
    state: str = "ready"
    """In a word, for people."""
    queued_tokens: int = 0
    """Tokens that requests, running or waiting, read and may write."""
    kv_tokens: int = 0
    """Room for tokens in the cache of keys and values, and how much of it is used."""
    kv_used_tokens: int = 0
    prefix_queried_tokens: int = 0
    """Counter: tokens that requests began with, and those found in the cache."""
    prefix_hit_tokens: int = 0
    drafted_tokens: int = 0
    """Counter: tokens that speculation drafted, and those of them that the model said, too."""
    accepted_tokens: int = 0
    preemptions: int = 0
    """Counter: requests that gave up their room in the cache, to go on later."""
    engine_restarts: int = 0
    """Counter: engine processes that replaced a lost one."""


class Deltas(Protocol):
    """The deltas of a request; of those that an async generator yields `Yielded` makes one."""

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each delta at the moment that it comes, and return after the last.

        Called once. Raises what kept it from answering, and what `take` raises.
        """

    async def aclose(self) -> None:
        """The client has gone: stop the work and free what it holds."""


class Yielded:
    """The deltas that an async generator yields."""

    def __init__(self, deltas: AsyncGenerator[Delta, None]) -> None:
        self._deltas = deltas

    async def tell(self, take: Callable[[Delta], None]) -> None:
        """Call `take` with each."""
        async for delta in self._deltas:
            take(delta)

    async def aclose(self) -> None:
        """Close the generator."""
        await self._deltas.aclose()


async def in_turn(deltas: Deltas) -> AsyncGenerator[Delta, None]:
    """The deltas one after the other, for whoever has to wait between them. Closes them in the end."""
    came: asyncio.Queue[Delta | None] = asyncio.Queue()
    telling = asyncio.ensure_future(deltas.tell(came.put_nowait))
    telling.add_done_callback(lambda _: came.put_nowait(None))
    try:
        while (delta := await came.get()) is not None:
            yield delta
        await telling
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await deltas.aclose()


class Served(Protocol):
    """What every backend has."""

    @property
    def info(self) -> BackendInfo:
        """Where its answers come from."""

    async def start(self) -> None:
        """Get ready, in the event loop that runs now; called once, before anything is asked."""

    def busy(self) -> Load:
        """How busy it is now."""

    async def close(self) -> None:
        """Free what it holds; requests in work end with EngineError."""


class ChatBackend(Served, Protocol):
    """Continues conversations."""

    async def chat(self, request: ChatRequest) -> Deltas:
        """Admit the request and give its deltas, interleaved when there are several answers.

        Raises RequestError, Overloaded, EngineError.
        """


@runtime_checkable
class TextBackend(Protocol):
    """A backend that also continues plain text, for `/v1/completions`."""

    async def complete(self, request: TextRequest) -> Deltas:
        """As `chat`, for each prompt."""


@runtime_checkable
class TokenBackend(Protocol):
    """A backend that shows its tokens and embeds texts."""

    @property
    def info(self) -> BackendInfo:
        """Where its answers come from."""

    async def tokenize(self, text: str, *, begin: bool) -> list[int]:
        """The tokens of a text; `begin` puts the token that begins texts before it, if the model has one.

        Raises RequestError if the text is far longer than the context.
        """

    async def tokenize_chat(self, request: ChatRequest, *, answer_begins: bool) -> list[int]:
        """The tokens of a conversation, to where the assistant begins to speak if `answer_begins`.

        Raises RequestError if it is far longer than the context, ModelError if the chat template refuses it.
        """

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Raises RequestError if there is no such token."""

    def token_text(self, token: int) -> str:
        """One token as text; U+FFFD for a part of a character."""

    async def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[NDArray[np.float32], int]:
        """The mean final hidden state of each text, [texts, hidden], and how many tokens were read.

        Raises as `ChatBackend.chat`.
        """


@runtime_checkable
class AdapterBackend(Protocol):
    """A backend whose model answers with adapters, too; each goes by a model's name of its own."""

    @property
    def adapters(self) -> Mapping[str, str]:
        """Digests of the adapters, by name."""

    async def load_adapter(self, name: str, folder: str) -> str:
        """Make the adapter in a folder known by a name; its digest. Raises ModelError, EngineError."""

    async def drop_adapter(self, name: str) -> None:
        """Let no new request find an adapter. Raises RequestError if there is none."""
