"""Packing: short sequences laid side by side into rows of a fixed length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.train.batches import IGNORE, Batch, Ints, as_batch


@dataclass(frozen=True)
class Example:
    """One sequence: its token ids, and which of them are to be learnt."""

    tokens: NDArray[np.int64]
    learnt: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


def pack(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """Rows of sequence numbers, by best fit in order of falling length; ties keep their order.

    Which rows still have room for how much is a bit set, so the tightest fit is found at once. Raises DataError for a
    sequence longer than a row.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        if length > row_len:
            raise DataError(f"sequence {number} has {length} tokens, a row only {row_len}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = row_len, len(rows)
            rows.append([])
        rows[row].append(number)
        left = room - length
        if left:
            with_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return rows


class PackedRows:
    """Examples packed into rows of `seq_len`; in each, a token is learnt as the target of the one before it."""

    def __init__(self, examples: Sequence[Example], seq_len: int, pad_id: int) -> None:
        self.examples = examples
        self.seq_len = seq_len
        self.pad_id = pad_id
        self.packed = pack([len(example) for example in examples], seq_len)

    def __len__(self) -> int:
        return len(self.packed)

    def read(self, rows: Ints) -> Batch:
        """These rows as a batch; padding is a segment of its own, without targets."""
        return lay_out(
            [[self.examples[number] for number in self.packed[row]] for row in rows], self.seq_len, self.pad_id
        )


def lay_out(rows: Sequence[Sequence[Example]], seq_len: int, pad_id: int) -> Batch:
    """A batch `[rows, seq_len]` with each row's examples side by side."""
    tokens = np.full((len(rows), seq_len), pad_id, dtype=np.int64)
    targets = np.full_like(tokens, IGNORE)
    segments = np.zeros_like(tokens)
    positions = np.zeros_like(tokens)
    for row, examples in enumerate(rows):
        at = 0
        for segment, example in enumerate([*examples, None]):
            size = len(example) if example is not None else seq_len - at
            here = slice(at, at + size)
            segments[row, here] = segment
            positions[row, here] = np.arange(size)
            if example is not None:
                tokens[row, here] = example.tokens
                targets[row, at : at + size - 1] = np.where(example.learnt[1:], example.tokens[1:], IGNORE)
            at += size
    return as_batch(tokens, targets, segments, positions)
