"""Mixtures of sources to train proxies on: sampled, bounded by what there is, and gathered in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.pretrain.ablate.difference import Floats
from liuyi.train.data import TokenStream
from liuyi.train.mixture import Drawn, Stretch, allot, draw

_CONCENTRATION = (1.0, 10.0)
"""Log-uniform: 1 gives mixtures of few sources, 10 such as keep near the prior."""


@dataclass(frozen=True)
class Source:
    """The documents of one tokens artifact."""

    label: str
    stream: TokenStream
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path, label: str) -> Source:
        import pyarrow.parquet as pq

        columns = pq.read_table(folder / "documents.parquet", columns=["offset", "tokens"])
        offsets, sizes = (columns[name].to_numpy().astype(np.int64) for name in ("offset", "tokens"))
        return cls(label, TokenStream(folder), offsets, sizes)


@dataclass
class ArrayStream:
    """A stream of documents in memory."""

    tokens: NDArray[Any]
    eos_id: int
    vocab_size: int
    phase_starts: Sequence[int] = (0,)

    def __len__(self) -> int:
        return len(self.tokens)


def sample_mixtures(prior: Sequence[float], count: int, rng: np.random.Generator) -> Floats:
    """Mixtures `[count, sources]` from Dirichlet distributions around `prior`, some near it and some far.

    After Liu et al. 2024, "RegMix": the same prior with many concentrations. Theirs go further towards single sources,
    which pays with hundreds of runs.
    """
    low, high = np.log(_CONCENTRATION)
    scales = np.exp(rng.uniform(low, high, count)) * len(prior)
    drawn = np.stack([rng.dirichlet(np.maximum(np.array(prior) * scale, 0.05)) for scale in scales])
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


def bounded(mixtures: Floats, sizes: Sequence[int], budget: float, max_epochs: float) -> Floats:
    """The mixtures that come out when no source may be gone through more than `max_epochs` times in `budget` tokens."""
    bounds = [max_epochs] * len(sizes)
    rows = [allot(sizes, [Stretch(1.0, tuple(mixture))], budget, bounds)[0] for mixture in mixtures]
    return np.stack([row / row.sum() for row in rows])


def mixed_stream(sources: Sequence[Source], weights: Sequence[float], budget: int, seed: int) -> ArrayStream:
    """About `budget` tokens of whole documents, as `data.mix` draws them.

    Raises DataError where the budget is too small for any document.
    """
    drawn = _drawn(sources, weights, budget, seed)
    pieces = []
    for number, row in zip(drawn.source.tolist(), drawn.row.tolist(), strict=True):
        source = sources[number]
        start = int(source.offsets[row])
        pieces.append(source.stream.tokens[start : start + int(source.sizes[row])])
    first = sources[0].stream
    return ArrayStream(np.concatenate(pieces), first.eos_id, first.vocab_size)


def drawn_shares(sources: Sequence[Source], weights: Sequence[float], budget: int, seed: int) -> Floats:
    """What part of the tokens of `mixed_stream` each source has, `[sources]`.

    It is not quite what `weights` ask for, since documents are whole and a proxy's budget is small.
    """
    drawn = _drawn(sources, weights, budget, seed)
    tokens = [source.sizes[drawn.row[drawn.source == number]].sum() for number, source in enumerate(sources)]
    return np.asarray(np.array(tokens, dtype=np.float64) / np.sum(tokens))


def _drawn(sources: Sequence[Source], weights: Sequence[float], budget: int, seed: int) -> Drawn:
    (drawn,) = draw([source.sizes for source in sources], np.array([weights]) * budget, seed)
    if not len(drawn.row):
        raise DataError(f"no document fits into a budget of {budget:,} tokens", hint="give proxies more tokens")
    return drawn
