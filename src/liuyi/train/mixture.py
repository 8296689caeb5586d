"""Mixtures: how many tokens of each source a training sees, in which phase, and which documents these are.

`allot` divides a budget of tokens, `draw` picks whole documents for it. Both are functions of their arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RAMP_PIECES = 8
"""A ramp is made of so many phases of constant weights."""


@dataclass(frozen=True)
class Stretch:
    """A part of the budget in which the weights stay as they are."""

    share: float
    """Of the budget."""
    weights: tuple[float, ...]
    """Of the sources; they add up to 1."""


def natural_weights(sizes: Sequence[int], temperature: float = 1.0) -> tuple[float, ...]:
    """Weights proportional to `sizes` ** (1 / temperature): 1 as much as there is, towards ∞ the same of each."""
    logs = np.log(np.array(sizes, dtype=np.float64)) / temperature
    powers = np.exp(logs - logs.max())
    return tuple((powers / powers.sum()).tolist())


def ramp(share: float, start: Sequence[float], end: Sequence[float]) -> list[Stretch]:
    """Stretches whose weights go from `start` to `end` in even steps, together `share` of the budget."""
    first, last = np.array(start), np.array(end)
    middles = (np.arange(RAMP_PIECES) + 0.5) / RAMP_PIECES
    return [Stretch(share / RAMP_PIECES, tuple((first + at * (last - first)).tolist())) for at in middles]


def allot(sizes: Sequence[int], stretches: Sequence[Stretch], budget: float, max_epochs: Sequence[float]) -> Floats:
    """Tokens of each source in each stretch, float64 `[stretches, sources]`.

    A source that would be gone through more than its `max_epochs` times gives up the same part of each stretch, and
    what it gives up goes to the other sources of that stretch in proportion to their weights, until nobody exceeds
    their bound. The sum is less than the budget where all that have a weight in a stretch are used up.
    """
    weights = np.array([stretch.weights for stretch in stretches], dtype=np.float64)
    shares = np.array([stretch.share for stretch in stretches], dtype=np.float64) * budget
    bounds = np.array(sizes, dtype=np.float64) * np.array(max_epochs)
    given = np.zeros_like(weights)
    full = np.zeros(len(sizes), dtype=bool)
    while True:
        left = np.maximum(shares - given[:, full].sum(axis=1), 0.0)
        open_weights = np.where(full, 0.0, weights)
        totals = open_weights.sum(axis=1, keepdims=True)
        parts = np.divide(open_weights, totals, out=np.zeros_like(weights), where=totals > 0)
        given[:, ~full] = (parts * left[:, None])[:, ~full]
        sums = given.sum(axis=0)
        over = ~full & (sums > bounds * (1 + 1e-12))
        if not over.any():
            return given
        given[:, over] *= bounds[over] / sums[over]
        full |= over


@dataclass(frozen=True)
class Drawn:
    """The documents of one stretch in the order of the stream, int64 `[documents]` each."""

    source: Ints
    row: Ints
    """Number of the document in its source."""
    epoch: Ints
    """How often the source had been gone through before, from 0."""


def draw(document_tokens: Sequence[Ints], tokens: Floats, seed: int) -> list[Drawn]:
    """Whole documents for each stretch, whose `tokens` are `[stretches, sources]`.

    Each epoch goes through a source's documents in another order, each once; a stretch begins where the one before it
    ended, so that over all stretches every source misses its tokens by half a document at most. Sources are shuffled
    together within a stretch.
    """
    picked: list[list[tuple[int, Ints, Ints]]] = [[] for _ in tokens]
    for source, sizes in enumerate(document_tokens):
        wanted = np.cumsum(tokens[:, source])
        order, epoch = _passes(len(sizes), wanted[-1] / sizes.sum(), seed, source)
        starts = np.concatenate([[0], np.cumsum(sizes[order])])
        ends = _nearest(starts, wanted)
        for at, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            picked[at].append((source, order[begin:end], epoch[begin:end]))
    return [_shuffled(parts, seed, at) for at, parts in enumerate(picked)]


def _passes(documents: int, epochs: float, seed: int, source: int) -> tuple[Ints, Ints]:
    """Document numbers of as many whole passes as `epochs` needs, and the pass that each belongs to."""
    count = max(1, int(np.ceil(epochs)))
    orders = [np.random.default_rng([seed, source, number]).permutation(documents) for number in range(count)]
    return np.concatenate(orders), np.repeat(np.arange(count), documents)


def _nearest(starts: Ints, wanted: Floats) -> list[int]:
    """How many documents come nearest to each of the `wanted` numbers of tokens."""
    above = np.clip(np.searchsorted(starts, wanted), 1, len(starts) - 1)
    return [int(a if starts[a] - w <= w - starts[a - 1] else a - 1) for a, w in zip(above, wanted, strict=True)]


def _shuffled(parts: Sequence[tuple[int, Ints, Ints]], seed: int, stretch: int) -> Drawn:
    sources = np.concatenate([np.full(len(rows), source) for source, rows, _ in parts])
    order = np.random.default_rng([seed, len(parts), stretch]).permutation(len(sources))
    rows, epochs = (np.concatenate([part[at] for part in parts])[order] for at in (1, 2))
    return Drawn(sources[order], rows, epochs)


def demand_alike(names: Sequence[str], vocab_sizes: Sequence[int], eos_ids: Sequence[int]) -> None:
    """Raises DataError where sources differ in how many ids there are or in which of them ends a document.

    Two tokenizers of equal size are not told apart.
    """
    for name, vocab_size, eos_id in zip(names, vocab_sizes, eos_ids, strict=True):
        if (vocab_size, eos_id) != (vocab_sizes[0], eos_ids[0]):
            raise DataError(
                f"'{name}' has {vocab_size} token ids and ends documents by {eos_id}, '{names[0]}' has "
                f"{vocab_sizes[0]} and ends them by {eos_ids[0]}",
                hint="make all tokens with one tokenizer",
            )
