"""The engine: many requests at once over one decoder.

    engine = Engine(model, tokenizer, max_slots=64, max_tokens=1024)
    completions = engine.generate([Request(prompt_ids=ids, max_tokens=64) for ids in prompts])

Requests join and leave between steps (continuous batching, Orca: Yu et al., OSDI 2022). A server uses `submit`,
`step` and `cancel` from one thread; `infer.async_engine` is that thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import GrammarCompiler, Matcher, fill_masks, schema_grammar
from liuyi.infer.request import Completion, Request, Update
from liuyi.infer.torch_runner import ModelRunner
from liuyi.infer.sampler import Sampler
from liuyi.infer.sampling import Scored, derive_seed, score, unpack_mask
from liuyi.infer.scheduler import Chunk, Scheduler
from liuyi.infer.sequence import Sequence
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


class Engine:
    """Continuous batching over a fixed number of slots. Not safe to use from several threads at once."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_slots: int = 64,
        max_tokens: int | None = None,
        prefill_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        """`max_tokens` bounds prompt and output together (the model's context when None), `prefill_tokens` the
        tokens of prompts read in one step; `seed` gives seeds to requests that have none, in the order they come.

        Raises ModelError if the tokenizer has more tokens than the model.
        """
        vocab_size = model.config.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise ModelError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_slots = max_slots
        self.max_tokens = min(max_tokens or model.config.max_position_embeddings, model.config.max_position_embeddings)
        self.stop_ids = frozenset(tokenizer.stop_ids) | frozenset(model.config.eos_token_ids)
        self.seed = seed
        self._pieces = _visible_pieces(tokenizer, vocab_size)
        self._scheduler = Scheduler(max_slots, prefill_tokens)
        self._runner = ModelRunner(model, max_slots, self.max_tokens)
        self._sampler = Sampler(max_slots, vocab_size)
        self._sequences: dict[int, Sequence] = {}
        self._submitted = 0

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.model.config.vocab_size, sorted(self.stop_ids))

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._scheduler.waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    def generate(
        self, requests: Items[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """The completions of all requests, in their order; `on_progress(done, total)` is called as they finish.

        Raises RequestError if one of them cannot be answered.
        """
        order = [self.submit(request) for request in requests]
        done: dict[int, Completion] = {}
        try:
            while len(done) < len(order):
                finished = len(done)
                for update in self.step():
                    if update.error is not None:
                        raise update.error
                    if update.completion is not None:
                        done[update.id] = update.completion
                if on_progress is not None and len(done) > finished:
                    on_progress(len(done), len(order))
        finally:
            for id in order:
                self.cancel(id)
        return [done[id] for id in order]

    def submit(self, request: Request, id: int | None = None) -> int:
        """Take a request into the queue; its id, by which updates and `cancel` name it (the next number by default).

        Raises RequestError as `check` does.
        """
        matcher = self.check(request)
        id = self._submitted if id is None else id
        seed = request.seed if request.seed is not None else derive_seed(self.seed, self._submitted)
        self._submitted += 1
        sequence = Sequence(
            id,
            request,
            matcher=matcher,
            seed=seed,
            limit=min(len(request.prompt_ids) + request.max_tokens, self.max_tokens),
            stop_ids=(frozenset() if request.ignore_eos else self.stop_ids) | frozenset(request.stop_token_ids),
        )
        self._sequences[id] = sequence
        self._scheduler.add(sequence)
        return id

    def check(self, request: Request) -> Matcher | None:
        """The matcher of the request's grammar, if it has one. May be called from any thread.

        Raises RequestError if the request can never be answered: its prompt leaves no room in the context or names
        a token that there is not, or its grammar is not valid. Compiled grammars are kept.
        """
        vocab_size = self.model.config.vocab_size
        if len(request.prompt_ids) >= self.max_tokens:
            raise RequestError(
                f"the prompt has {len(request.prompt_ids)} tokens, and the context holds {self.max_tokens} "
                "with at least one for the answer",
                param="prompt",
                code="context_length_exceeded",
            )
        for name, ids in (("prompt", request.prompt_ids), ("logit_bias", request.logit_bias)):
            if ids and (min(ids) < 0 or max(ids) >= vocab_size):
                raise RequestError(f"token ids are between 0 and {vocab_size - 1}", param=name)
        grammar = request.grammar or (schema_grammar(request.schema) if request.schema is not None else None)
        return self._grammars.compile(grammar) if grammar is not None else None

    def cancel(self, id: int) -> bool:
        """Drop a request at once, whether it waits or runs; whether there was one."""
        sequence = self._sequences.pop(id, None)
        if sequence is None:
            return False
        if sequence.slot >= 0:
            self._runner.free(sequence.slot)
        self._scheduler.remove(sequence)
        return True

    def step(self) -> list[Update]:
        """One step of every request that takes part in it: schedule → run → sample → publish."""
        chunks = self._schedule()
        if not chunks:
            return []
        turns, logits = self._run(chunks)
        self._sample(turns, logits)
        return self._publish(turns, logits)

    def _schedule(self) -> list[Chunk]:
        for sequence in self._scheduler.admit():
            self._sampler.admit(sequence.slot, sequence.request, sequence.seed)
        return self._scheduler.schedule()

    def _run(self, chunks: Items[Chunk]) -> tuple[list[_Turn], Tensor]:
        """The sequences that have been read to their end, and the logits of all of them [rows, vocab]."""
        wanted = [1 + chunk.sequence.unscored if chunk.is_last else 0 for chunk in chunks]
        logits = self._runner.run(chunks, wanted)
        turns, row = [], 0
        for chunk, rows in zip(chunks, wanted, strict=True):
            chunk.sequence.computed += chunk.count
            if rows:
                turns.append(_Turn(chunk.sequence, row, rows))
                row += rows
        return turns, logits

    def _sample(self, turns: Items[_Turn], logits: Tensor) -> None:
        """Give each sequence that may go on its next token, and those that the grammar forces after it."""
        speaking = [turn for turn in turns if not turn.sequence.is_closed]
        if not speaking:
            return
        sequences = [turn.sequence for turn in speaking]
        tokens = self._sampler.sample(
            logits[[turn.row + turn.rows - 1 for turn in speaking]],
            slots=[sequence.slot for sequence in sequences],
            positions=[sequence.generated for sequence in sequences],
            allowed=self._allowed([sequence.matcher for sequence in sequences]),
        )
        for sequence, token in zip(sequences, tokens, strict=True):
            self._sampler.observe(sequence.slot, sequence.extend(token))

    def _allowed(self, matchers: Items[Matcher | None]) -> Tensor | None:
        """Which tokens the grammars allow, [rows, vocab] bool; None if there is no grammar."""
        rows = [row for row, matcher in enumerate(matchers) if matcher is not None]
        if not rows:
            return None
        vocab_size = self.model.config.vocab_size
        bits = fill_masks([matcher for matcher in matchers if matcher is not None], vocab_size)
        if len(rows) == len(matchers):
            return unpack_mask(bits, vocab_size)
        allowed = torch.ones(len(matchers), vocab_size, dtype=torch.bool)
        allowed[rows] = unpack_mask(bits, vocab_size)
        return allowed

    def _publish(self, turns: Items[_Turn], logits: Tensor) -> list[Update]:
        """Make new tokens known with their log-probabilities, and free the slots of those that end."""
        ready = [turn.sequence.take_ready(turn.rows) for turn in turns]
        scores = self._score(turns, ready, logits)
        updates = []
        for turn, tokens in zip(turns, ready, strict=True):
            asked = turn.sequence.request.logprobs
            scored = list(islice(scores, len(tokens))) if asked else []
            update = turn.sequence.publish(self._pieces, tokens, scored)
            if update.completion is not None or update.error is not None:
                self.cancel(update.id)
            updates.append(update)
        return updates

    def _score(self, turns: Items[_Turn], ready: Items[Items[int]], logits: Tensor) -> Iterator[Scored]:
        """Log-probabilities of the ready tokens of the sequences that asked for them, in order."""
        rows: list[int] = []
        tokens: list[int] = []
        tops: list[int] = []
        for turn, new in zip(turns, ready, strict=True):
            if turn.sequence.request.logprobs:
                rows += range(turn.row, turn.row + len(new))
                tokens += new
                tops += [turn.sequence.request.top_logprobs] * len(new)
        return iter(score(logits[rows], tokens, tops) if rows else [])


@dataclass(frozen=True)
class _Turn:
    """A sequence that may say something in this step, and its rows of logits: one for each token it has to score."""

    sequence: Sequence
    row: int
    rows: int


def _visible_pieces(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """The bytes that each token adds to the text; special tokens and ids without a token add none."""
    pieces = list(tokenizer.all_token_bytes) + [b""] * (vocab_size - tokenizer.vocab_size)
    for id in tokenizer.special_tokens.values():
        pieces[id] = b""
    return pieces
