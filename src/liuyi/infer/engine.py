"""The engine: many requests at once over one model.

    engine = Engine(model, tokenizer, max_slots=64, max_tokens=1024)
    completions = engine.generate([Request(prompt_ids=ids, max_tokens=64) for ids in prompts])

Requests join and leave between steps (continuous batching, Orca: Yu et al., OSDI 2022); their keys and values lie in
blocks that those with the same beginning share. A server uses `submit`, `step` and `cancel` from one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cached_property, partial
from itertools import islice
from time import perf_counter
from typing import TypeVar

from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.infer.adapters import AdapterRegistry
from liuyi.infer.blocks import BlockPool
from liuyi.infer.errors import RequestError, context_exceeded
from liuyi.infer.grammar import GrammarCompiler, Matcher, fill_masks, schema_grammar
from liuyi.infer.open import open_runner, open_sampler
from liuyi.infer.pace import Pace
from liuyi.infer.request import Completion, Request, Update
from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Ids, Runner
from liuyi.infer.sampler import Masks
from liuyi.infer.sampling import Scored, derive_seed
from liuyi.infer.scheduler import Chunk, Scheduler
from liuyi.infer.sequence import Sequence
from liuyi.infer.speculate.speculator import Drafter, Speculator
from liuyi.infer.stats import Stats
from liuyi.infer.turn import Turn, pack
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

PREFILL_TOKENS, PACED_PREFILL_TOKENS = 2048, 512

_Result = TypeVar("_Result", Tensor, Ids)


class Engine:
    """Continuous batching over blocks of keys and values. Not safe to use from several threads at once."""

    def __init__(
        self,
        model: Runner | Decoder,
        tokenizer: Tokenizer,
        *,
        max_slots: int = 64,
        max_tokens: int | None = None,
        prefill_tokens: int | None = None,
        stretch: float | None = None,
        drafter: Drafter | None = None,
        seed: int = 0,
    ) -> None:
        """`model` is a runner, or a decoder to run as it is: the reference.

        `max_slots` requests run at once. `max_tokens` bounds prompt and output together: the model's context when
        None, and never more than the runner's blocks hold. `prefill_tokens` and `stretch` say how prompts are read
        beside what generates: see `Pace`; 2,048 tokens when None, and 512 with `stretch`, where others may wait for a
        step to end. `drafter` speculates, which changes nothing but the speed. `seed` gives seeds to requests that
        have none, in the order they come.

        Raises ModelError if the tokenizer has more tokens than the model.
        """
        vocab_size = model.config.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise ModelError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}")
        context = min(max_tokens or model.config.context_tokens, model.config.context_tokens)
        if isinstance(model, Decoder):
            model = open_runner(model, weights="reference", slots=max_slots, max_tokens=context)
        self.runner = model
        self.tokenizer = tokenizer
        self.max_slots = max_slots
        self.max_tokens = min(context, model.blocks * BLOCK_TOKENS)
        self.stop_ids = frozenset(tokenizer.stop_ids) | frozenset(model.config.eos_token_ids)
        self.seed = seed
        self.adapters = AdapterRegistry(model)
        self._pieces = _visible_pieces(tokenizer, vocab_size)
        if prefill_tokens is None:
            prefill_tokens = PREFILL_TOKENS if stretch is None else PACED_PREFILL_TOKENS
        self._pace = Pace(prefill_tokens, stretch, model.stops)
        self._scheduler = Scheduler(max_slots, BlockPool(model.blocks), self._pace, model.config.hidden_size)
        self._speculator = Speculator(drafter, self._pace) if drafter is not None else None
        self._sampler = open_sampler(model, max_slots)
        self._sequences: dict[int, Sequence] = {}
        self._submitted = 0

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.runner.config.vocab_size, sorted(self.stop_ids))

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

    @property
    def pool(self) -> BlockPool:
        """The blocks of keys and values, and who uses them."""
        return self._scheduler.pool

    @property
    def stats(self) -> Stats:
        """What the engine has done and holds now."""
        scheduler, speculator = self._scheduler, self._speculator
        return Stats(
            running=self.running,
            waiting=self.waiting,
            blocks_used=scheduler.pool.used,
            blocks_total=scheduler.pool.blocks,
            queried_tokens=scheduler.queried_tokens,
            hit_tokens=scheduler.hit_tokens,
            preemptions=scheduler.preemptions,
            drafted_tokens=speculator.drafted if speculator else 0,
            accepted_tokens=speculator.accepted if speculator else 0,
        )

    def generate(
        self, requests: Items[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """The completions of all requests, in their order; `on_progress(done, total)` is called as they finish.

        Raises RequestError if one of them cannot be answered.
        """
        order: list[int] = []
        done: dict[int, Completion] = {}
        try:
            for request in requests:
                order.append(self.submit(request))
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
        names = self.tokenizer.special_tokens.items() if request.visible_ids else ()
        sequence = Sequence(
            id,
            request,
            matcher=matcher,
            seed=request.seed if request.seed is not None else derive_seed(self.seed, self._submitted),
            limit=min(len(request.prompt_ids) + request.max_tokens, self.max_tokens),
            stop_ids=(frozenset() if request.ignore_eos else self.stop_ids) | frozenset(request.stop_token_ids),
            visible={token: name.encode() for name, token in names if token in request.visible_ids},
            number=self._submitted,
            adapter=self.adapters.take(request.adapter) if request.adapter is not None else None,
        )
        self._submitted += 1
        self._sequences[id] = sequence
        self._scheduler.add(sequence)
        return id

    def check(self, request: Request) -> Matcher | None:
        """The matcher of the request's grammar, if it has one. May be called from any thread.

        Raises RequestError if the request can never be answered: its prompt leaves no room in the context or names
        a token or an adapter that there is not, or its grammar is not valid. Compiled grammars are kept.
        """
        vocab_size = self.runner.config.vocab_size
        if len(request.prompt_ids) >= self.max_tokens:
            raise context_exceeded(f"the prompt has {len(request.prompt_ids)} tokens", self.max_tokens, param="prompt")
        named = (
            ("prompt", request.prompt_ids),
            ("logit_bias", request.logit_bias),
            ("stop_token_ids", request.stop_token_ids),
        )
        for name, ids in named:
            if ids and (min(ids) < 0 or max(ids) >= vocab_size):
                raise RequestError(f"token ids are between 0 and {vocab_size - 1}", param=name)
        if request.adapter is not None:
            self.adapters.digest(request.adapter)
        grammar = request.grammar or (schema_grammar(request.schema) if request.schema is not None else None)
        return self._grammars.compile(grammar) if grammar is not None else None

    def cancel(self, id: int) -> bool:
        """Drop a request at once, whether it waits or runs; whether there was one."""
        sequence = self._sequences.pop(id, None)
        if sequence is None:
            return False
        self._scheduler.remove(sequence)
        if self._speculator is not None:
            self._speculator.forget(sequence)
        if sequence.adapter is not None:
            self.adapters.give_back(sequence.adapter)
        return True

    def forget(self) -> None:
        """Drop the keys and values of requests that have ended, so that the next ones find none of their prefixes."""
        self._scheduler.pool.clear()

    def step(self) -> list[Update]:
        """One step of every request that takes part in it: schedule → run → sample → publish."""
        chunks = self._schedule()
        if not chunks:
            return []
        batch, turns = pack(chunks)
        logits = None  # of a step that needs no more of them than a token
        if turns and all(self._is_plain(turn.sequence) for turn in turns):
            self._say_chosen(turns, self._run(chunks, batch, partial(self.runner.choose, draws=self._draws_of(turns))))
        else:
            logits = self._run(chunks, batch, self.runner.logits)
            self._sample(turns, logits)
        self._learn(turns)
        return self._publish(turns, logits)

    def _schedule(self) -> list[Chunk]:
        for sequence in self._scheduler.admit():
            self._sampler.admit(sequence.slot, sequence.request, sequence.seed, sequence.stop_ids)
            self._sampler.observe(sequence.slot, sequence.tokens[sequence.prompt_tokens :])
        speculator, generating = self._speculator, self._scheduler.generating
        drafts = speculator.draft(generating, self._choose) if speculator and generating else {}
        return self._scheduler.schedule(drafts)

    def _is_plain(self, sequence: Sequence) -> bool:
        """Whether nothing but a token is asked of its logits, which temperature and noise alone choose."""
        return not sequence.wants_logits and self._sampler.is_plain(sequence.slot, sequence.generated)

    def _draws_of(self, turns: Items[Turn]) -> Draws | None:
        """How the tokens after the rows of all turns are chosen."""
        slots: list[int] = []
        positions: list[int] = []
        for turn in turns:
            first = turn.position + 1 - turn.sequence.prompt_tokens
            slots += [turn.sequence.slot] * turn.rows
            positions += range(first, first + turn.rows)
        return self._sampler.draws(slots, positions)

    def _run(self, chunks: Items[Chunk], batch: Batch, run: Callable[[Batch], _Result]) -> _Result:
        """What the runner makes of the chunks."""
        began = perf_counter()
        result = run(batch)
        seconds = perf_counter() - began
        read = [chunk.piece for chunk in chunks if not chunk.sequence.is_generating]
        drafted = sum(len(chunk.drafts) for chunk in chunks)
        self._pace.observe(len(chunks) - len(read), drafted, read, seconds)
        for chunk in chunks:
            self._scheduler.read(chunk)
        return result

    def _sample(self, turns: Items[Turn], logits: Tensor) -> None:
        """Give each sequence that may go on its next token, and those that grammar or draft let follow at once."""
        speaking = [turn for turn in turns if turn.speaks and not turn.sequence.is_closed]
        if any(turn.drafts for turn in speaking):
            speaking = self._sample_drafted(speaking, logits)
        while speaking:
            rows = [turn.row_of(turn.sequence.computed - 1) for turn in speaking]
            slots = [turn.sequence.slot for turn in speaking]
            positions = [turn.sequence.generated for turn in speaking]
            masks = self._masks([turn.sequence.matcher for turn in speaking])
            tokens = self._sampler.sample(logits, rows, slots, positions, masks)
            speaking = [turn for turn, token in zip(speaking, tokens, strict=True) if self._say(turn, token)]

    def _sample_drafted(self, speaking: Items[Turn], logits: Tensor) -> list[Turn]:
        """Go through the drafts of all whose choice is the most probable token, which one pass finds for all rows;
        the others are left."""
        left = []
        likeliest = logits.numpy().argmax(axis=-1).tolist()
        for turn in speaking:
            sequence = turn.sequence
            if sequence.matcher is not None or not self._sampler.is_greedy(sequence.slot, sequence.generated):
                left.append(turn)
                continue
            self._follow(turn, likeliest)
        return left

    def _say_chosen(self, turns: Items[Turn], tokens: Ids) -> None:
        chosen = tokens.tolist()
        for turn in turns:
            if turn.speaks and not turn.sequence.is_closed:
                self._follow(turn, chosen)

    def _follow(self, turn: Turn, chosen: Items[int]) -> None:
        """Let a sequence say the token that was chosen after its last one, and after each that was drafted the next."""
        begin = turn.row_of(turn.sequence.computed - 1)
        for token in chosen[begin : begin + 1 + len(turn.drafts)]:
            if not self._say(turn, token):
                break

    def _learn(self, turns: Items[Turn]) -> None:
        if self._speculator is not None:
            for turn in turns:
                if turn.drafts:
                    self._speculator.learn(turn.sequence, len(turn.drafts), turn.agreed)

    def _choose(self, runner: Runner, batch: Batch, sequences: Items[Sequence], ahead: int) -> list[int]:
        """A token for each row of a batch of another runner, so many tokens further than its sequence is."""
        slots = [sequence.slot for sequence in sequences]
        positions = [sequence.generated + ahead for sequence in sequences]
        if all(map(self._sampler.is_plain, slots, positions)):
            chosen: list[int] = runner.choose(batch, self._sampler.draws(slots, positions)).tolist()
            return chosen
        return self._sampler.sample(runner.logits(batch), range(len(slots)), slots, positions, None)

    def _say(self, turn: Turn, token: int) -> bool:
        """Append a token and what the grammar forces after it; whether that was drafted, so that more can follow."""
        sequence = turn.sequence
        new = sequence.extend(token)
        self._sampler.observe(sequence.slot, new)
        agreed = turn.agree(new) if turn.drafts else 0
        if agreed:
            self._scheduler.computed(sequence, agreed)
        return agreed == len(new) and token not in sequence.stop_ids and not sequence.is_closed

    def _masks(self, matchers: Items[Matcher | None]) -> Masks | None:
        """Which tokens the grammars allow; None if there is no grammar."""
        grammars = [matcher for matcher in matchers if matcher is not None]
        if not grammars:
            return None
        bits = iter(fill_masks(grammars, self.runner.config.vocab_size))
        return [None if matcher is None else next(bits) for matcher in matchers]

    def _publish(self, turns: Items[Turn], logits: Tensor | None) -> list[Update]:
        """Make new tokens known with their log-probabilities, and let go of the sequences that end."""
        ready = [turn.sequence.ready if turn.speaks else [] for turn in turns]
        scores = self._score(turns, ready, logits)
        updates = []
        for turn, tokens, scored in zip(turns, ready, scores, strict=True):
            if turn.speaks:
                update = turn.sequence.publish(self._pieces, tokens, scored)
                if update.completion is not None or update.error is not None:
                    self.cancel(update.id)
                updates.append(update)
        return updates

    def _score(self, turns: Items[Turn], ready: Items[Items[int]], logits: Tensor | None) -> list[list[Scored]]:
        """Log-probabilities of the ready tokens of each turn, if they are wanted; those of prompts are kept."""
        rows: list[int] = []
        tokens: list[int] = []
        tops: list[int] = []
        for turn, new in zip(turns, ready, strict=True):
            sequence = turn.sequence
            wanted = [*sequence.unscored_prompt, *(new if sequence.request.logprobs else ())]
            rows += range(turn.row, turn.row + len(wanted))
            tokens += wanted
            tops += [sequence.request.top_logprobs] * len(wanted)
        if not rows or logits is None:
            return [[] for _ in turns]
        scores = iter(self._sampler.score(logits, rows, tokens, tops))
        result = []
        for turn, new in zip(turns, ready, strict=True):
            turn.sequence.score_prompt(list(islice(scores, len(turn.sequence.unscored_prompt))))
            result.append(list(islice(scores, len(new))) if turn.sequence.request.logprobs else [])
        return result


def _visible_pieces(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """The bytes that each token adds to the text; special tokens and ids without a token add none."""
    pieces = list(tokenizer.all_token_bytes) + [b""] * (vocab_size - tokenizer.vocab_size)
    for id in tokenizer.special_tokens.values():
        pieces[id] = b""
    return pieces
