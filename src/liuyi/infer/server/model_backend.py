"""A checkpoint behind the server: conversations to tokens by its chat template, updates to deltas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from liuyi.infer.async_engine import AsyncEngine, Stream
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.request import Request, Update
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
from liuyi.model.checkpoint import load_model
from liuyi.model.config import DecoderConfig
from liuyi.model.tokenizer import Tokenizer

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class ModelBackend:
    """Chat and plain completions by one engine."""

    def __init__(
        self, engine: Engine, *, digest: str = "", max_queue: int = 256, defaults: dict[str, Any] | None = None
    ) -> None:
        """`defaults` are sampling parameters for requests that leave them open; temperature 1 when not named."""
        self.engine = engine
        self.info = BackendInfo(model_digest=digest, max_tokens=engine.max_tokens)
        self._async = AsyncEngine(engine, max_queue=max_queue)
        self._defaults = {"temperature": 1.0, **(defaults or {})}
        self._longest_piece = max(map(len, engine.tokenizer.all_token_bytes))

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        digest: str = "",
        max_slots: int | None = None,
        max_tokens: int | None = None,
        max_queue: int = 256,
        dtype: torch.dtype = torch.float32,
    ) -> ModelBackend:
        """A backend over a model folder; as many slots as fit into a quarter of the free memory, up to 64, by default.

        Raises ModelError if the folder cannot be read.
        """
        model, tokenizer = load_model(folder, dtype=dtype), Tokenizer.load(folder)
        context = min(max_tokens or model.config.max_position_embeddings, model.config.max_position_embeddings)
        slots = max_slots or slots_that_fit(model.config, context, dtype)
        engine = Engine(model, tokenizer, max_slots=slots, max_tokens=context)
        return cls(engine, digest=digest, max_queue=max_queue, defaults=sampling_defaults(folder))

    async def start(self) -> None:
        """Start the engine's thread."""
        self._async.start()

    async def close(self) -> None:
        """Stop the engine's thread."""
        await self._async.close()

    def busy(self) -> Load:
        """How busy the engine is."""
        engine = self._async
        return Load(engine.running, engine.waiting, self.engine.max_slots, engine.alive)

    async def chat(self, request: ChatRequest) -> Deltas:
        """Continue a conversation. Raises RequestError, Overloaded, EngineError, ModelError (the template refused)."""

        def make() -> list[Request]:
            self._check_length(sum(len(str(message["content"])) for message in request.messages), "messages")
            ids, _ = encode_chat(self.engine.tokenizer, request.messages, add_generation_prompt=True)
            return self._requests([ids], request.options)

        return _Answers(self.engine, await self._async.submit(make, request.options.n))

    async def complete(self, request: TextRequest) -> Deltas:
        """Continue texts. Raises RequestError, Overloaded, EngineError."""

        def make() -> list[Request]:
            prompts = []
            for prompt in request.prompts:
                if isinstance(prompt, str):
                    self._check_length(len(prompt), "prompt")
                    prompt = self.engine.tokenizer.encode(prompt)
                prompts.append(list(prompt))
            return self._requests(prompts, request.options)

        return _Answers(self.engine, await self._async.submit(make, len(request.prompts) * request.options.n))

    def _check_length(self, characters: int, param: str) -> None:
        """Refuse what cannot fit without spending time on its tokens: no token covers more than its bytes."""
        if characters > self._longest_piece * self.engine.max_tokens:
            raise RequestError(
                f"the prompt has {characters} characters, far more than the context of {self.engine.max_tokens} tokens",
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
                max_tokens=options.max_tokens or self.engine.max_tokens,
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

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Delta:
        index, update = await self._stream.__anext__()
        completion = update.completion
        return Delta(
            index=index,
            text=update.text,
            tokens=tuple(self._tokens(update)),
            finish_reason=completion.finish_reason if completion else None,
            prompt_tokens=completion.prompt_tokens if completion else 0,
            completion_tokens=len(completion.token_ids) if completion else 0,
        )

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _tokens(self, update: Update) -> list[TokenLogprob]:
        tokens = []
        tops = update.top_logprobs or [()] * len(update.logprobs)
        for token, logprob, top in zip(update.token_ids, update.logprobs, tops, strict=True) if update.logprobs else ():
            best = tuple(TokenLogprob(self._bytes(id), value) for id, value in top)
            tokens.append(TokenLogprob(self._bytes(token), logprob, best))
        return tokens

    def _bytes(self, token: int) -> bytes:
        pieces = self._engine.tokenizer.all_token_bytes
        return pieces[token] if token < len(pieces) else b""


def slots_that_fit(
    config: DecoderConfig, max_tokens: int, dtype: torch.dtype, most: int = 64, share: float = 0.25
) -> int:
    """How many slots of `max_tokens` tokens fit into a share of the memory that is free now; at least one."""
    token_bytes = 2 * dtype.itemsize * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    free = psutil.virtual_memory().available
    return max(1, min(most, int(free * share / (token_bytes * max_tokens))))


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """The sampling parameters that a model folder's `generation_config.json` recommends, if it samples at all."""
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not values.get("do_sample"):
        return {}
    return {name: values[name] for name in SAMPLING_DEFAULTS if values.get(name) is not None}
