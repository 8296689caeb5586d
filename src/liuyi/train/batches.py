"""Batches: what the loop reads, as a pure function of (seed, index).

Rows of `seq_len` tokens are numbered; each epoch visits all of them in an order given by a keyed bijection, so
nothing has to be shuffled, stored or replayed. To resume is to ask for the next index, and a changed number of
workers only cuts the same global batch differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.core.errors import DataError

IGNORE = -100
"""The target of a position that has nothing to predict."""

Ints = NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 4
_KEYS_A_PHASE = 0x9E3779B1


@dataclass(frozen=True)
class Batch:
    """Packed rows, each tensor `[rows, seq]` int64.

    `targets[i]` is the token that follows `tokens[i]` in its document, or `IGNORE`. `segments` numbers the documents
    within a row, and `positions` restart with each of them.
    """

    tokens: Tensor
    targets: Tensor
    segments: Tensor
    positions: Tensor

    @property
    def packed(self) -> Batch:
        return self

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


B_co = TypeVar("B_co", covariant=True)


class Rows(Protocol[B_co]):
    """A numbered set of packed rows, or of other things that make a batch."""

    def __len__(self) -> int: ...

    def read(self, rows: Ints) -> B_co:
        """The rows of these numbers, in this order."""


def permute(index: Ints, size: int, key: int) -> Ints:
    """A bijection of `range(size)`, chosen by `key`, at each of `index`.

    A Feistel network over the next power of four, walked along its cycle until it lands below `size`
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = [_mix(np.uint64((key + 1 + round_) & 0xFFFFFFFFFFFFFFFF)) for round_ in range(_ROUNDS)]
    result = index.astype(np.uint64)
    pending = np.arange(len(result))
    while len(pending):
        value = result[pending]
        left, right = value >> shift, value & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[pending] = (left << shift) | right
        pending = pending[result[pending] >= size]
    return result.astype(np.int64)


def _mix(value: Any) -> Any:
    with np.errstate(over="ignore"):
        value = value * _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


class ShuffledBatches(Generic[B_co]):
    """Global batch `index` of `batch_rows` rows, as this worker's micro-batches of at most `micro_rows` rows.

    The row at place `p` of the endless sequence is `permute(p mod rows)` under the key of epoch `p // rows`. Where the
    rows come in phases, each begins at its row of `phase_starts` and is permuted within itself, so that every epoch
    goes through the phases in their order.
    """

    def __init__(
        self,
        rows: Rows[B_co],
        *,
        batch_rows: int,
        seed: int,
        micro_rows: int | None = None,
        worker: int = 0,
        workers: int = 1,
        phase_starts: Sequence[int] = (0,),
    ) -> None:
        if not len(rows):
            raise DataError("there are no rows to train on")
        if batch_rows % workers:
            raise DataError(
                f"a batch of {batch_rows} rows cannot be shared evenly by {workers} workers",
                hint=f"take fewer processes, or rows enough for a batch of a multiple of {workers}",
            )
        self.rows = rows
        self.batch_rows = batch_rows
        self.seed = seed
        self.share = batch_rows // workers
        self.worker = worker
        self.micro_rows = micro_rows or self.share
        self.phase_ends = np.array([*phase_starts[1:], len(rows)], dtype=np.int64)

    def row_numbers(self, index: int) -> Ints:
        """The rows of this worker's share of global batch `index`."""
        first = index * self.batch_rows + self.worker * self.share
        places = np.arange(first, first + self.share, dtype=np.int64)
        epochs, places = np.divmod(places, len(self.rows))
        phases = np.searchsorted(self.phase_ends, places, side="right")
        numbers = np.empty_like(places)
        for epoch, phase in np.unique(np.stack([epochs, phases], axis=1), axis=0).tolist():
            here = (epochs == epoch) & (phases == phase)
            start = int(self.phase_ends[phase - 1]) if phase else 0
            key = (self.seed * 1_000_003 + epoch + phase * _KEYS_A_PHASE) * _ROUNDS
            numbers[here] = start + permute(places[here] - start, int(self.phase_ends[phase]) - start, key)
        return numbers

    def micro_numbers(self, index: int) -> list[Ints]:
        """The same, cut into micro-batches."""
        numbers = self.row_numbers(index)
        return [numbers[at : at + self.micro_rows] for at in range(0, len(numbers), self.micro_rows)]

    def first_epoch(self) -> Iterator[tuple[Ints, int]]:
        """Every micro-batch's rows, and how many of these, from the first on, are of this epoch: the last batch goes on
        into the next."""
        for index in range(-(-len(self.rows) // self.batch_rows)):
            place = index * self.batch_rows + self.worker * self.share
            for numbers in self.micro_numbers(index):
                yield numbers, min(len(numbers), max(0, len(self.rows) - place))
                place += len(numbers)

    def __call__(self, index: int) -> Sequence[B_co]:
        return [self.rows.read(numbers) for numbers in self.micro_numbers(index)]


def starts_to_segments(starts: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Segments and positions `[rows, seq]` from marks of where a document starts; each row starts one anyway."""
    starts = starts.copy()
    starts[:, 0] = True
    segments = np.cumsum(starts, axis=1, dtype=np.int64) - 1
    here = np.arange(starts.shape[1], dtype=np.int64)[None, :]
    last = np.maximum.accumulate(np.where(starts, here, 0), axis=1)
    return segments, here - last


def as_batch(tokens: Ints, targets: Ints, segments: Ints, positions: Ints) -> Batch:
    """A `Batch` of contiguous tensors from arrays."""
    return Batch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (tokens, targets, segments, positions)))
