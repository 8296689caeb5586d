"""From chunks to a batch of the runner, and from its logits back to sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from liuyi.infer.runner import Batch, ids
from liuyi.infer.scheduler import Chunk
from liuyi.infer.sequence import Sequence


@dataclass(slots=True)
class Turn:
    """A sequence of which logits are wanted in this step, and where they are."""

    sequence: Sequence
    row: int
    """Number of its first row of logits in the batch."""
    rows: int
    """How many it has."""
    position: int
    """Position of the token after which that row is; the row predicts the token after it."""
    speaks: bool
    """The last token it has was read, so that it may be given the next one."""
    drafts: Items[int] = ()
    """Tokens that were read after its last one, in case they are what it says."""
    agreed: int = 0
    """How many of them it has said."""

    def agree(self, new: Items[int]) -> int:
        """How many of the tokens that the sequence said now were drafted, one after the other."""
        left = self.drafts[self.agreed :]
        agreed = next((at for at, pair in enumerate(zip(new, left, strict=False)) if pair[0] != pair[1]), None)
        agreed = min(len(new), len(left)) if agreed is None else agreed
        self.agreed += agreed
        return agreed

    def row_of(self, position: int) -> int:
        """The row of logits after the token at a position."""
        return self.row + position - self.position


def pack(chunks: Items[Chunk]) -> tuple[Batch, list[Turn]]:
    """The batch that reads the chunks, and what its rows of logits are for."""
    tokens: list[int] = []
    rows: list[int] = []
    turns: list[Turn] = []
    most = max(len(chunk.sequence.blocks) for chunk in chunks)
    tables = np.full((len(chunks), most), -1, dtype=np.int32)
    for at, chunk in enumerate(chunks):
        sequence = chunk.sequence
        tokens += chunk.tokens
        tables[at, : len(sequence.blocks)] = sequence.blocks
        if wanted := chunk.rows:
            position = sequence.computed + chunk.count + len(chunk.drafts) - wanted
            turns.append(Turn(sequence, len(rows), wanted, position, chunk.is_last, chunk.drafts))
            rows += range(len(tokens) - wanted, len(tokens))
    batch = Batch(
        tokens=ids(tokens),
        counts=ids([chunk.count + len(chunk.drafts) for chunk in chunks]),
        lengths=ids([chunk.sequence.computed for chunk in chunks]),
        tables=tables,
        rows=ids(rows),
        adapters=ids([-1 if (held := chunk.sequence.adapter) is None else held.slot for chunk in chunks]),
        layers=chunks[-1].layers,
    )
    return batch, turns
