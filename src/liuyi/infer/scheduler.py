"""Which sequences take part in the next step, with how many tokens, and in which blocks.

Sequences run as soon as a slot and room for their tokens are free: the lowest priority number first, of equals the
one that came first. All that generate take part in every step. Prompts are read in chunks beside them, for as long as
`Pace` allows in a step; a chunk may take several steps, a few layers each. Where blocks run out, the last in rank goes
back into the queue; it keeps its tokens, and reads them again when its turn comes.

Tokens that others have read are not read again: a sequence takes over blocks with its own next tokens wherever they
are found, and waits where another is about to compute them in the same step.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np

from liuyi.infer.blocks import BlockPool, blocks_for
from liuyi.infer.pace import Budget, Pace
from liuyi.infer.reading_cost import Piece
from liuyi.infer.runner import BLOCK_TOKENS, Layers
from liuyi.infer.sequence import Sequence

PROMPT_ROWS = 128
"""Rows of logits that a step makes for log-probabilities of prompts: 25 MB in float32 for 49,152 tokens."""


@dataclass(slots=True)
class Chunk:
    """The next `count` unread tokens of a sequence, and what may come after its last one."""

    sequence: Sequence
    count: int
    drafts: Items[int] = ()
    layers: Layers | None = None
    """What the tokens go through in this step, None for all layers."""
    left: int = 0
    """Layers that they have yet to go through after it."""

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens to read."""
        start = self.sequence.computed
        return [*self.sequence.tokens[start : start + self.count], *self.drafts]

    @property
    def is_last(self) -> bool:
        """After it the model can say the next token."""
        return self.count == self.sequence.pending and not self.left

    @property
    def piece(self) -> Piece:
        """What it is to `Pace`."""
        share = 1.0 if self.layers is None else (self.layers.end - self.layers.begin) / (self.layers.end + self.left)
        return Piece(self.count, self.sequence.computed, share)

    @property
    def rows(self) -> int:
        """How many of the chunk's last tokens logits are wanted after."""
        if self.left:
            return 0
        end = self.sequence.computed + self.count
        return end - max(self.sequence.computed, min(end, self.sequence.next_row)) + len(self.drafts)

    @property
    def prompt_rows(self) -> int:
        """Those of them that are for log-probabilities of a prompt."""
        return self.rows if self.sequence.request.prompt_logprobs else 0


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Scheduler:
    """A queue in order of rank before a fixed number of slots and blocks."""

    def __init__(self, slots: int, pool: BlockPool, pace: Pace, hidden_size: int) -> None:
        self.pool = pool
        self.pace = pace
        self.hidden_size = hidden_size
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.queried_tokens = 0
        """Tokens that running sequences have begun with."""
        self.hit_tokens = 0
        """Those of them that were in the cache already."""
        self._slots = list(range(slots))
        self._held: Chunk | None = None
        """What has gone through some of the layers, as it was read last; its sequence has blocks for it."""

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the queue."""
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; its slot and blocks are free at once."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
        else:
            self._stop(sequence)

    def admit(self) -> list[Sequence]:
        """Let those run whose turn has come; the sequences that did not run before."""
        admitted: list[Sequence] = []
        while self.waiting:
            first = self.waiting[0]
            if not self._slots or not self._fits(first):
                if not self.running or self.running[-1].request.priority <= first.request.priority:
                    break
                victim = self.running[-1]
                self.preempt(victim)
                admitted = [sequence for sequence in admitted if sequence is not victim]
                continue
            sequence = self.waiting.pop(0)
            sequence.slot = heappop(self._slots)
            sequence.to_read = len(sequence.tokens)
            self.queried_tokens += sequence.to_read
            insort(self.running, sequence, key=_rank)
            admitted.append(sequence)
        return admitted

    @property
    def generating(self) -> list[Sequence]:
        """Running sequences that have been read, in order of rank."""
        return [sequence for sequence in self.running if sequence.is_generating]

    def schedule(self, drafts: Mapping[int, Items[int]]) -> list[Chunk]:
        """What the next step reads; `drafts` by the ids of sequences, read where there is room for them.

        No chunk but the last goes through some of the layers only.
        """
        chunks = self._generate(drafts)
        return chunks + self._read(len(chunks))

    def preempt(self, sequence: Sequence) -> None:
        """Back into the queue with a running sequence: its tokens stay, its blocks are for others."""
        self._stop(sequence)
        sequence.computed = 0
        sequence.was_preempted = True
        self.preemptions += 1
        self.add(sequence)

    def read(self, chunk: Chunk) -> None:
        """What was scheduled has been read."""
        if chunk.layers is not None:
            self._held = chunk if chunk.left else None
        if not chunk.left:
            self.computed(chunk.sequence, chunk.count)

    def computed(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens of a sequence have been read: blocks that they fill can be found from now on."""
        begin, end = sequence.computed // BLOCK_TOKENS, (sequence.computed + count) // BLOCK_TOKENS
        sequence.computed += count
        for at in range(begin, end):
            self.pool.keep(sequence.blocks[at], sequence.keys[at])

    def _generate(self, drafts: Mapping[int, Items[int]]) -> list[Chunk]:
        chunks = []
        for sequence in self.generating:
            while sequence.slot >= 0 and not self._reserve(sequence, sequence.pending):
                # Of lower rank than all that have their chunk, for these come in order of rank.
                self.preempt(self.running[-1])
            if sequence.slot >= 0:
                draft = drafts.get(sequence.id, ())
                fits = self._reserve(sequence, sequence.pending + len(draft))
                chunks.append(Chunk(sequence, sequence.pending, draft if fits else ()))
        return chunks

    def _read(self, generating: int) -> list[Chunk]:
        reading = [sequence for sequence in self.running if not sequence.is_generating]
        if not reading:
            return []
        budget = self.pace.budget(generating, len(reading) + len(self.waiting))
        held = self._held
        resumed = self._resume(held, budget) if held is not None else []
        coming = set(self._keys(held.sequence, held.count)) if held is not None else set()
        rows = PROMPT_ROWS - sum(chunk.prompt_rows for chunk in resumed)
        chunks: list[Chunk] = []
        for sequence in reading:
            if sequence.slot < 0 or (held is not None and sequence is held.sequence):
                continue
            self._adopt(sequence)
            count, layers = budget.piece(sequence.computed, sequence.pending, whole=held is not None)
            if not count:
                break
            if sequence.request.prompt_logprobs:
                count = min(count, max(0, sequence.next_row - sequence.computed) + rows)
            if self._is_coming(sequence, coming):
                continue
            count = self._reserve_most(sequence, count, alone=not (chunks or resumed or generating))
            if count:
                chunk = self._begin(sequence, count, layers)
                rows -= chunk.prompt_rows
                coming.update(self._keys(sequence, count))
                chunks.append(chunk)
                budget.take(chunk.piece)
                if chunk.left:
                    break
        return chunks + resumed

    def _begin(self, sequence: Sequence, count: int, layers: int) -> Chunk:
        """The next tokens of a sequence, through the first layers or all."""
        if layers == self.pace.layers:
            return Chunk(sequence, count)
        residual = np.empty((count, self.hidden_size), np.float32)
        return Chunk(sequence, count, layers=Layers(0, layers, residual), left=self.pace.layers - layers)

    def _resume(self, held: Chunk, budget: Budget) -> list[Chunk]:
        """The next layers of a chunk that is held, if there is time for any."""
        layers = budget.layers(held.count, held.sequence.computed, held.left)
        if not layers or held.layers is None:
            return []
        begin = held.layers.end
        chunk = replace(held, layers=replace(held.layers, begin=begin, end=begin + layers), left=held.left - layers)
        budget.take(chunk.piece)
        return [chunk]

    def _adopt(self, sequence: Sequence) -> None:
        """Take over blocks with the next tokens of a sequence, as far as no logits are wanted of them."""
        while sequence.computed == BLOCK_TOKENS * len(sequence.blocks):
            at = len(sequence.blocks)
            if BLOCK_TOKENS * (at + 1) > sequence.next_row:
                return
            block = self.pool.find(sequence.keys[at])
            if block is None:
                return
            sequence.blocks.append(block)
            sequence.computed += BLOCK_TOKENS
            self.hit_tokens += BLOCK_TOKENS
            if not sequence.was_preempted:
                sequence.cached += BLOCK_TOKENS

    def _is_coming(self, sequence: Sequence, coming: set[bytes]) -> bool:
        """Whether another computes the next block of a sequence in this step, so that it is found after it."""
        at = sequence.computed // BLOCK_TOKENS
        return (
            sequence.computed == BLOCK_TOKENS * at
            and BLOCK_TOKENS * (at + 1) <= sequence.next_row
            and sequence.keys[at] in coming
        )

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Keys of the blocks that the next `count` tokens fill or begin, if they will be full."""
        begin = sequence.computed // BLOCK_TOKENS
        end = min(blocks_for(sequence.computed + count), len(sequence.tokens) // BLOCK_TOKENS)
        return [sequence.keys[at] for at in range(begin, end)]

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Give a sequence blocks for its next `count` tokens; False, and nothing, if there are not enough."""
        missing = blocks_for(sequence.computed + count) - len(sequence.blocks)
        if missing > self.pool.available:
            return False
        for _ in range(missing):
            sequence.blocks.append(self.pool.take())
        return True

    def _reserve_most(self, sequence: Sequence, count: int, *, alone: bool) -> int:
        """Reserve for as many of `count` tokens as there is room for; if nothing else runs, others make room."""
        while True:
            room = BLOCK_TOKENS * (len(sequence.blocks) + self.pool.available) - sequence.computed
            if room > 0 or not alone or self.running[-1] is sequence:
                count = min(count, room)
                self._reserve(sequence, count)
                return count
            self.preempt(self.running[-1])

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there is room to read a sequence, beside what the running ones will need for theirs."""
        if not self.running:
            return True
        needed = blocks_for(len(sequence.tokens) + 1)
        for at in range(sequence.next_row // BLOCK_TOKENS):
            if not self.pool.has(sequence.keys[at]):
                break
            needed -= not self.pool.is_idle(sequence.keys[at])
        promised = sum(max(1, blocks_for(running.to_read + 1) - len(running.blocks)) for running in self.running)
        return needed + promised <= self.pool.available

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if self._held is not None and self._held.sequence is sequence:
            self._held = None
        heappush(self._slots, sequence.slot)
        sequence.slot = -1
        self.pool.release(sequence.blocks)
        sequence.blocks = array("i")
