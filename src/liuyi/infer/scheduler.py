"""Which sequences take part in the next step, and with how many tokens.

Sequences join as soon as a slot is free, in the order in which they came. All that generate take part in every
step; the prompts of the others are read in chunks, so that a long prompt never holds up the rest for long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from liuyi.infer.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """The next `count` unread tokens of a sequence."""

    sequence: Sequence
    count: int

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens to read."""
        start = self.sequence.computed
        return self.sequence.tokens[start : start + self.count]

    @property
    def is_last(self) -> bool:
        """After it the model can say the next token."""
        return self.count == self.sequence.pending


class Scheduler:
    """A first-come queue before a fixed number of slots."""

    def __init__(self, slots: int, prefill_tokens: int) -> None:
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free = list(range(slots))

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give free slots to those that wait; the sequences that have one now."""
        admitted = []
        while self.waiting and self._free:
            sequence = self.waiting.popleft()
            # The lowest slots, so that those in use lie close together in the cache.
            sequence.slot = heappop(self._free)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def schedule(self) -> list[Chunk]:
        """What the next step reads: every generating sequence whole, and at most `prefill_tokens` of prompts."""
        chunks, budget = [], self.prefill_tokens
        for sequence in self.running:
            count = sequence.pending
            if not sequence.is_generating:
                count = min(count, budget)
                budget -= count
            if count:
                chunks.append(Chunk(sequence, count))
        return chunks

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of queue or slot; the slot is free at once."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        heappush(self._free, sequence.slot)
        sequence.slot = -1
