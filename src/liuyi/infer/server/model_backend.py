"""A checkpoint behind the server: conversations to tokens by its chat template, updates to deltas."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.digest import sha256_bytes, sha256_tree
from liuyi.core.errors import LiuyiError
from liuyi.infer.errors import RequestError, context_exceeded
from liuyi.infer.grammar import ControlTokens
from liuyi.infer.process.client import EngineClient
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.process.spawn import spawn
from liuyi.infer.server.admission import Admission
from liuyi.infer.server.backend import (
    BackendInfo,
    ChatRequest,
    Deltas,
    Load,
    Options,
    TextRequest,
)
from liuyi.infer.server.beam_answers import BeamAnswers
from liuyi.infer.server.best_of import BestOf
from liuyi.infer.server.calling import Called, as_template_knows, grammar_of
from liuyi.infer.server.model_answers import Answers, Prompt
from liuyi.infer.server.task import SAMPLING_DEFAULTS, Task
from liuyi.infer.tools.formats import FORMATS, format_of
from liuyi.model.chat import encode_chat
from liuyi.model.files import read_json
from liuyi.model.load import load_tokenizer
from liuyi.model.template import rendering_within
from liuyi.model.tokenizer import Tokenizer

QUEUED_CONTEXTS = 16
QUEUED_SHARE = 0.25
"""Tokens that may wait unless a limit is given: this part of what `max_queue` requests of a whole context would have,
and `QUEUED_CONTEXTS` at least."""
TEMPLATE_S = 5.0
"""A conversation is rendered once for each of the assistant's turns, which together may take so long."""
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
        tool_format: str | None = None,
    ) -> None:
        """`max_queue` requests with `max_queue_tokens` tokens may wait beside those that are decoded. `defaults` are
        sampling parameters for requests that leave them open; temperature 1 when not named. `tool_format` is one of
        `FORMATS`, that of the chat template when None."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.digest = digest
        self._max_queue = max_queue
        self._max_queue_tokens = max_queue_tokens
        self._defaults = {"temperature": 1.0, **(defaults or {})}
        self._tool_format = FORMATS[tool_format] if tool_format else format_of(tokenizer.chat_template)
        self._template_digest = sha256_bytes(tokenizer.chat_template.encode()) if tokenizer.chat_template else None
        self._longest_piece = max(map(len, tokenizer.all_token_bytes))
        self.admission = Admission(max_requests=0, max_tokens=0)

    @classmethod
    def load(
        cls, spec: EngineSpec, *, digest: str = "", chat_template: str | None = None, **options: Any
    ) -> ModelBackend:
        """A backend whose engine is opened as `spec` says; `options` as for the class.

        The process is started at once, to load the weights while this one gets ready: without a `digest` the model's
        is computed from the content of its file or folder. `chat_template` replaces the model's own. Raises ModelError
        if the tokenizer cannot be read.
        """
        path = Path(spec.model)
        engine = EngineClient(partial(spawn, spec))
        engine.launch()
        try:
            tokenizer, defaults = load_tokenizer(path), sampling_defaults(path)
            if chat_template is not None:
                tokenizer.chat_template = chat_template
            return cls(engine, tokenizer, digest=digest or sha256_tree(path), defaults=defaults, **options)
        except BaseException:
            engine.abandon()
            raise

    @property
    def info(self) -> BackendInfo:
        """Where its answers come from."""
        facts = self.engine.facts
        made_with = {"chat_template_digest": self._template_digest, "runner": facts.runner}
        return BackendInfo(model_digest=self.digest, max_tokens=facts.max_tokens, made_with=made_with)

    async def start(self) -> None:
        """Start the engine's process, and wait until the model is loaded. Raises LiuyiError if it cannot be."""
        await asyncio.gather(self.engine.start(), asyncio.to_thread(self._get_used_to_conversations))
        facts = self.engine.facts
        contexts = max(QUEUED_CONTEXTS, int(QUEUED_SHARE * self._max_queue))
        queued = self._max_queue_tokens or contexts * facts.max_tokens
        self.admission = Admission(max_requests=facts.max_slots + self._max_queue, max_tokens=facts.kv_tokens + queued)

    async def close(self) -> None:
        """Stop the engine's process."""
        await self.engine.close()

    def busy(self) -> Load:
        """How busy the engine is."""
        client, engine = self.engine, self.engine.pulse.engine
        return Load(
            running=engine.running,
            waiting=max(0, self.admission.requests - engine.running),
            slots=client.facts.max_slots,
            alive=client.state == "ready",
            state=client.state,
            queued_tokens=self.admission.tokens,
            kv_tokens=client.facts.kv_tokens,
            kv_used_tokens=engine.blocks_used * client.facts.block_tokens,
            prefix_queried_tokens=engine.queried_tokens,
            prefix_hit_tokens=engine.hit_tokens,
            drafted_tokens=engine.drafted_tokens,
            accepted_tokens=engine.accepted_tokens,
            preemptions=engine.preemptions,
            engine_restarts=client.restarts,
        )

    @property
    def adapters(self) -> Mapping[str, str]:
        """Digests of the adapters, by name."""
        return self.engine.adapters

    async def load_adapter(self, name: str, folder: str) -> str:
        """Make the adapter in a folder known by a name; its digest. Raises ModelError, EngineError."""
        return await self.engine.load_adapter(name, folder)

    async def drop_adapter(self, name: str) -> None:
        """Let no new request find an adapter. Raises RequestError if there is none."""
        await self.engine.drop_adapter(name)

    async def chat(self, request: ChatRequest) -> Deltas:
        """Continue a conversation. Raises RequestError, Overloaded, EngineError, ModelError (the template refused)."""
        form, use = self._tool_format, request.tools
        size = _characters(request)
        self._check_length(size, "messages")
        self._check_turns(len(request.messages))

        def make() -> Task:
            ids = self._encode(request, answer_begins=True)
            if use is None:
                return Task([ids], request.options)
            special = self.tokenizer.special_tokens
            grammar = grammar_of(use, form, ControlTokens.of(self.tokenizer), request.options.grammar)
            visible = [special[tag] for tag in form.tags if tag in special]
            return Task([ids], dataclasses.replace(request.options, grammar=grammar), visible_ids=visible)

        answers = await self._begin(make, request.options, 1, characters=size)
        return answers if use is None else Called(answers, use, form)

    async def complete(self, request: TextRequest) -> Deltas:
        """Continue texts. Raises RequestError, Overloaded, EngineError."""
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        for text in texts:
            self._check_length(len(text), "prompt")

        def make() -> Task:
            ids = [self.tokenizer.encode(text) if isinstance(text, str) else list(text) for text in request.prompts]
            shown = zip(request.prompts, ids, strict=True) if request.echo else ()
            return Task(ids, request.options, echo=[self._as_prompt(*prompt) for prompt in shown])

        given = sum(len(prompt) for prompt in request.prompts if not isinstance(prompt, str))
        characters = sum(map(len, texts))
        return await self._begin(make, request.options, len(request.prompts), characters=characters, given=given)

    async def tokenize(self, text: str, *, begin: bool) -> list[int]:
        """The tokens of a text. Raises RequestError if it is far longer than the context."""
        self._check_length(len(text), "prompt")
        first = self.tokenizer.token_id(self.tokenizer.bos_token) if begin else None
        ids = await asyncio.to_thread(self.tokenizer.encode, text)
        return ids if first is None else [first, *ids]

    async def tokenize_chat(self, request: ChatRequest, *, answer_begins: bool) -> list[int]:
        """The tokens of a conversation.

        Raises RequestError as `tokenize`, ModelError if the chat template refuses it.
        """
        self._check_length(_characters(request), "messages")
        self._check_turns(len(request.messages))
        return await asyncio.to_thread(self._encode, request, answer_begins=answer_begins)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Raises RequestError if there is no such token."""
        size = self.tokenizer.vocab_size
        if tokens and max(tokens) >= size:
            raise RequestError(f"token ids are between 0 and {size - 1}", param="tokens")
        return await asyncio.to_thread(self.tokenizer.decode, tokens)

    def token_text(self, token: int) -> str:
        """One token as text."""
        return self.tokenizer.token_bytes(token).decode(errors="replace")

    async def embed(self, texts: Sequence[str | Sequence[int]]) -> tuple[NDArray[np.float32], int]:
        """The mean final hidden state of each text. Raises RequestError, Overloaded, EngineError."""
        context = self.engine.facts.max_tokens
        written = [text for text in texts if isinstance(text, str)]
        for text in written:
            self._check_length(len(text), "input")
        characters = sum(map(len, written))
        given = sum(len(text) for text in texts if not isinstance(text, str))
        place = self.admission.enter(requests=1, prompt_bytes=characters, prompt_tokens=given)
        try:
            made = await asyncio.to_thread(
                lambda: [self.tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
            )
            read = sum(map(len, made))
            place.settle(read, characters, read - given)
            for ids in made:
                if len(ids) >= context:
                    raise context_exceeded(f"a text has {len(ids)} tokens", context, param="input")
            vectors = await self.engine.embed(made)
            place.leave(read)
        finally:
            place.leave()
        return vectors, read

    def _get_used_to_conversations(self) -> None:
        """Render one, which compiles the template and the tokenizer's rules, while the model is loaded elsewhere."""
        with suppress(LiuyiError):
            self._encode(ChatRequest(messages=[{"role": "user", "content": "."}]), answer_begins=True)

    def _encode(self, request: ChatRequest, *, answer_begins: bool) -> list[int]:
        messages, tools = as_template_knows(request, self._tool_format)
        with rendering_within(TEMPLATE_S):
            ids, _ = encode_chat(
                self.tokenizer,
                messages,
                tools=tools,
                variables=request.template_variables,
                add_generation_prompt=answer_begins,
            )
        return ids

    def _as_prompt(self, prompt: str | Sequence[int], ids: Sequence[int]) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(prompt, ids)
        pieces = self.tokenizer.all_token_bytes
        known = b"".join(pieces[token] for token in ids if token < len(pieces))
        return Prompt(known.decode(errors="replace"), ids)

    async def _begin(
        self, make: Callable[[], Task], options: Options, prompts: int, *, characters: int, given: int = 0
    ) -> Deltas:
        """Find a place, make the prompts in another thread since that takes time, and submit the requests.

        The prompts are `characters` and `given` tokens long.
        """
        context = self.engine.facts.max_tokens
        answer = min(OPEN_ANSWER_TOKENS if options.max_tokens is None else options.max_tokens, context)
        count = max(options.n, options.best_of)
        place = self.admission.enter(
            requests=prompts * count,
            prompt_bytes=characters * count,
            prompt_tokens=given * count,
            answer_tokens=answer * prompts * count,
        )
        try:
            task = await asyncio.to_thread(make)
            read = sum(map(len, task.prompts))
            needed = sum(min(len(ids) + answer, context) for ids in task.prompts) * count
            place.settle(needed, characters, read - given)
            if options.beam is not None:
                searches = task.searches(self.engine.facts.stop_ids, context)
                return BeamAnswers(self.engine, searches, options.n, self.tokenizer, place)
            stream = await self.engine.submit(task.requests(self._defaults, context))
        except BaseException:
            place.leave()
            raise
        answers = Answers(stream, place, self.tokenizer.all_token_bytes, task.echo, count)
        if count == options.n:
            return answers
        return BestOf(answers, count=count, n=options.n, show_tokens=options.logprobs)

    def _check_length(self, characters: int, param: str) -> None:
        """Refuse what cannot fit without spending time on its tokens: no token covers more than its bytes."""
        context = self.engine.facts.max_tokens
        if characters > self._longest_piece * context:
            raise context_exceeded(f"the prompt has {characters} characters", context, param=param)

    def _check_turns(self, messages: int) -> None:
        """Refuse conversations of which not even the beginnings of their messages would fit."""
        context = self.engine.facts.max_tokens
        if messages >= context:
            raise context_exceeded(f"the conversation has {messages} messages", context, param="messages")


def _characters(request: ChatRequest) -> int:
    """How much text a conversation has, that of its tools among it."""
    said = sum(len(str(part)) for message in request.messages for name, part in message.items() if name != "role")
    functions = request.tools.functions if request.tools is not None else ()
    return said + sum(len(function.description) + len(str(function.parameters)) for function in functions)


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """The sampling parameters that a model folder's `generation_config.json` recommends, if it samples at all.

    A GGUF file recommends none. Raises ModelError for a file that cannot be read.
    """
    path = folder / "generation_config.json"
    values = read_json(path) if path.exists() else {}
    if not values.get("do_sample"):
        return {}
    return {name: values[name] for name in SAMPLING_DEFAULTS if values.get(name) is not None}
