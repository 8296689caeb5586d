"""A checkpoint behind the server: conversations to tokens by its chat template, updates to deltas."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from liuyi.infer.errors import RequestError
from liuyi.infer.process.client import EngineClient, Stream
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.process.spawn import spawn
from liuyi.infer.request import Request, Update
from liuyi.infer.server.admission import Admission, Place
from liuyi.infer.server.backend import (
    BackendInfo,
    ChatRequest,
    Delta,
    Deltas,
    Load,
    Options,
    TextRequest,
    TokenLogprob,
)
from liuyi.model.chat import encode_chat
from liuyi.model.tokenizer import Tokenizer

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
QUEUED_CONTEXTS = 16
"""Tokens that may wait, in contexts of the model, unless a limit is given."""
OPEN_ANSWER_TOKENS = 256
"""What an answer without a limit of its own counts for when room for it is sought."""


class ModelBackend:
    """Chat and plain completions by one engine in a process of its own."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        *,
        digest: str = "",
        max_queue: int = 256,
        max_queue_tokens: int | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        """`max_queue` requests with `max_queue_tokens` tokens may wait beside those that are decoded. `defaults` are
        sampling parameters for requests that leave them open; temperature 1 when not named."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.digest = digest
        self._max_queue = max_queue
        self._max_queue_tokens = max_queue_tokens
        self._defaults = {"temperature": 1.0, **(defaults or {})}
        self._longest_piece = max(map(len, tokenizer.all_token_bytes))
        self.admission = Admission(max_requests=0, max_tokens=0)

    @classmethod
    def load(cls, folder: Path, spec: EngineSpec, **options: Any) -> ModelBackend:
        """A backend over a model folder, whose engine is opened as `spec` says; `options` as for the class.

        Raises ModelError if the tokenizer cannot be read.
        """
        engine = EngineClient(partial(spawn, spec))
        return cls(engine, Tokenizer.load(folder), defaults=sampling_defaults(folder), **options)

    @property
    def info(self) -> BackendInfo:
        """Where its answers come from."""
        return BackendInfo(model_digest=self.digest, max_tokens=self.engine.facts.max_tokens)

    async def start(self) -> None:
        """Start the engine's process, and wait until the model is loaded. Raises LiuyiError if it cannot be."""
        await self.engine.start()
        facts = self.engine.facts
        queued = self._max_queue_tokens or QUEUED_CONTEXTS * facts.max_tokens
        self.admission = Admission(
            max_requests=facts.max_slots + self._max_queue, max_tokens=facts.max_slots * facts.max_tokens + queued
        )

    async def close(self) -> None:
        """Stop the engine's process."""
        await self.engine.close()

    def busy(self) -> Load:
        """How busy the engine is."""
        running = self.engine.stats.running
        waiting = max(0, self.admission.requests - running)
        return Load(running, waiting, self.engine.facts.max_slots, self.engine.state == "ready")

    async def chat(self, request: ChatRequest) -> Deltas:
        """Continue a conversation. Raises RequestError, Overloaded, EngineError, ModelError (the template refused)."""
        size = sum(len(str(message["content"])) for message in request.messages)

        def make() -> list[list[int]]:
            ids, _ = encode_chat(self.tokenizer, request.messages, add_generation_prompt=True)
            return [ids]

        self._check_length(size, "messages")
        return await self._begin(make, 1, size, request.options)

    async def complete(self, request: TextRequest) -> Deltas:
        """Continue texts. Raises RequestError, Overloaded, EngineError."""
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        for text in texts:
            self._check_length(len(text), "prompt")

        def make() -> list[list[int]]:
            return [
                self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in request.prompts
            ]

        given = sum(len(prompt) for prompt in request.prompts if not isinstance(prompt, str))
        return await self._begin(make, len(request.prompts), sum(map(len, texts)), request.options, given)

    async def _begin(
        self, make: Callable[[], list[list[int]]], prompts: int, characters: int, options: Options, given: int = 0
    ) -> _Answers:
        """Find a place, make the prompts in another thread since that takes time, and submit the requests.

        The prompts are `characters` and `given` tokens long.
        """
        context = self.engine.facts.max_tokens
        answer = min(options.max_tokens or OPEN_ANSWER_TOKENS, context)
        place = self.admission.enter(
            requests=prompts * options.n,
            prompt_bytes=characters * options.n,
            prompt_tokens=given * options.n,
            answer_tokens=answer * prompts * options.n,
        )
        try:
            made = await asyncio.to_thread(make)
            read = sum(map(len, made))
            needed = sum(min(len(ids) + answer, context) for ids in made) * options.n
            place.settle(needed, characters, read - given)
            stream = await self.engine.submit(self._requests(made, options))
        except BaseException:
            place.leave()
            raise
        return _Answers(self.tokenizer, stream, place)

    def _check_length(self, characters: int, param: str) -> None:
        """Refuse what cannot fit without spending time on its tokens: no token covers more than its bytes."""
        context = self.engine.facts.max_tokens
        if characters > self._longest_piece * context:
            raise RequestError(
                f"the prompt has {characters} characters, far more than the context of {context} tokens",
                param=param,
                code="context_length_exceeded",
            )

    def _requests(self, prompts: Sequence[list[int]], options: Options) -> list[Request]:
        chosen = {name: getattr(options, name) for name in SAMPLING_DEFAULTS}
        sampling = self._defaults | {name: value for name, value in chosen.items() if value is not None}
        requests = []
        for ids in prompts:
            request = Request(
                prompt_ids=ids,
                max_tokens=options.max_tokens or self.engine.facts.max_tokens,
                presence_penalty=options.presence_penalty,
                frequency_penalty=options.frequency_penalty,
                logit_bias=options.logit_bias,
                stop=options.stop,
                grammar=options.grammar,
                logprobs=options.logprobs,
                top_logprobs=options.top_logprobs,
                **sampling,
            )
            for choice in range(options.n):
                seed = None if options.seed is None else options.seed + choice
                requests.append(dataclasses.replace(request, seed=seed))
        return requests


class _Answers:
    """An engine's stream as deltas."""

    def __init__(self, tokenizer: Tokenizer, stream: Stream, place: Place) -> None:
        self._pieces = tokenizer.all_token_bytes
        self._stream = stream
        self._place = place
        self._tokens = 0

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Delta:
        try:
            index, update = await self._stream.__anext__()
        except BaseException as error:
            self._place.leave(self._tokens if isinstance(error, StopAsyncIteration) else 0)
            raise
        completion = update.completion
        if completion is not None:
            self._tokens += completion.prompt_tokens + len(completion.token_ids)
        return Delta(
            index=index,
            text=update.text,
            tokens=tuple(self._scored(update)),
            finish_reason=completion.finish_reason if completion else None,
            prompt_tokens=completion.prompt_tokens if completion else 0,
            completion_tokens=len(completion.token_ids) if completion else 0,
        )

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._place.leave()

    def _scored(self, update: Update) -> list[TokenLogprob]:
        tokens = []
        tops = update.top_logprobs or [()] * len(update.logprobs)
        for token, logprob, top in zip(update.token_ids, update.logprobs, tops, strict=True) if update.logprobs else ():
            best = tuple(TokenLogprob(self._bytes(id), value) for id, value in top)
            tokens.append(TokenLogprob(self._bytes(token), logprob, best))
        return tokens

    def _bytes(self, token: int) -> bytes:
        return self._pieces[token] if token < len(self._pieces) else b""


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """The sampling parameters that a model folder's `generation_config.json` recommends, if it samples at all."""
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not values.get("do_sample"):
        return {}
    return {name: values[name] for name in SAMPLING_DEFAULTS if values.get(name) is not None}
