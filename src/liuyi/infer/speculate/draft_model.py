"""A smaller model with the same tokens drafts for a larger one.

It samples with the larger model's parameters, seed and noise, so that where the two distributions are near each other
their samples are the same, at any temperature: a Gumbel coupling.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from liuyi.infer.blocks import BlockPool, blocks_for
from liuyi.infer.runner import BLOCK_TOKENS, Batch, Runner, ids
from liuyi.infer.sequence import Sequence as Running
from liuyi.infer.speculate.speculator import Choose

_CATCH_UP = 256
"""Tokens that the draft model reads in one go, until it has read all that the large one has."""


@dataclass(slots=True)
class _Reader:
    """What the draft model has read of a sequence."""

    blocks: array[int] = field(default_factory=lambda: array("i"))
    read: int = 0
    """Tokens of the sequence itself."""
    ahead: list[int] = field(default_factory=list)
    """Drafted tokens after these."""


class DraftModel:
    """Drafts with a runner of its own, which reads along."""

    def __init__(self, runner: Runner, most: int = 5) -> None:
        """`runner` holds the draft model, whose vocabulary is the large one's; `most` is the longest draft."""
        self.token_s = 0.0
        self._most = most
        self._runner = runner
        self._pool = BlockPool(runner.blocks)
        self._readers: dict[int, _Reader] = {}

    def offers(self, sequence: Running) -> int:
        """See `Drafter.offers`."""
        return self._most

    def guess(self, sequence: Running) -> int | None:
        """See `Drafter.guess`: that takes the draft model."""
        return None

    def draft(self, wanted: Sequence[tuple[Running, int]], choose: Choose) -> list[list[int]]:
        """See `Drafter.draft`."""
        drafts: dict[int, list[int]] = {sequence.id: [] for sequence, _ in wanted}
        drafting = [(sequence, length) for sequence, length in wanted if self._follow(sequence, length)]
        for at in range(self._most):
            began = perf_counter()
            drafting = [(sequence, length) for sequence, length in drafting if length > at]
            if not drafting:
                break
            chosen = self._read([sequence for sequence, _ in drafting], drafts, at, choose)
            if not chosen:
                break
            for id, token in chosen.items():
                drafts[id].append(token)
            drafting = [(sequence, length) for sequence, length in drafting if drafts[sequence.id][at:]]
            if at:
                self.token_s += 0.2 * (perf_counter() - began - self.token_s)
        return [drafts[sequence.id] for sequence, _ in wanted]

    def forget(self, sequence: Running) -> None:
        """See `Drafter.forget`."""
        reader = self._readers.pop(sequence.id, None)
        if reader is not None:
            self._pool.release(reader.blocks)

    def _follow(self, sequence: Running, length: int) -> bool:
        """Come to where the sequence is, with room for so many tokens more; False if there is none."""
        reader = self._readers.get(sequence.id)
        if reader is None:
            reader = self._readers[sequence.id] = _Reader()
            for at in range((len(sequence.tokens) - 1) // BLOCK_TOKENS):
                block = self._pool.find(sequence.keys[at])
                if block is None:
                    break
                reader.blocks.append(block)
            reader.read = BLOCK_TOKENS * len(reader.blocks)
        right = 0
        for drafted, token in zip(reader.ahead, sequence.tokens[reader.read :], strict=False):
            if drafted != token:
                break
            right += 1
        self._keep(sequence, reader, right)
        reader.ahead = []
        missing = blocks_for(len(sequence.tokens) + length) - len(reader.blocks)
        if missing > self._pool.available:
            return False
        reader.blocks.extend(self._pool.take() for _ in range(missing))
        return True

    def _read(
        self, sequences: Sequence[Running], drafts: dict[int, list[int]], ahead: int, choose: Choose
    ) -> dict[int, int]:
        """Read what is new of sequences and their drafts of `ahead` tokens; the next token, by their ids, of those that
        are read to their end."""
        budget = _CATCH_UP
        tokens: list[int] = []
        counts, lengths, rows = [], [], []
        taken, ready = [], []
        for sequence in sequences:
            reader = self._readers[sequence.id]
            length = reader.read + len(reader.ahead)
            missing = [*sequence.tokens[length:], *drafts[sequence.id][len(reader.ahead) :]]
            new = missing[:budget]
            if not new:
                continue
            budget -= len(new)
            tokens += new
            counts.append(len(new))
            lengths.append(length)
            taken.append((sequence, reader, new))
            if len(new) == len(missing):
                rows.append(len(tokens) - 1)
                ready.append(sequence)
        most = max(len(reader.blocks) for _, reader, _ in taken)
        tables = np.full((len(taken), most), -1, dtype=np.int32)
        for at, (_, reader, _) in enumerate(taken):
            tables[at, : len(reader.blocks)] = reader.blocks
        adapters = np.full(len(taken), -1, dtype=np.int32)
        batch = Batch(ids(tokens), ids(counts), ids(lengths), tables, ids(rows), adapters)
        chosen = choose(self._runner, batch, ready, ahead)
        for sequence, reader, new in taken:
            own = min(len(new), max(0, len(sequence.tokens) - reader.read))
            self._keep(sequence, reader, own)
            reader.ahead += new[own:]
        return {sequence.id: token for sequence, token in zip(ready, chosen, strict=True)}

    def _keep(self, sequence: Running, reader: _Reader, count: int) -> None:
        """So many more tokens of the sequence have been read: blocks that they fill can be found."""
        begin, end = reader.read // BLOCK_TOKENS, (reader.read + count) // BLOCK_TOKENS
        reader.read += count
        for at in range(begin, end):
            self._pool.keep(reader.blocks[at], sequence.keys[at])
