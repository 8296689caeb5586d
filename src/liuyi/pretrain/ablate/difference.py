"""Is one arm better than another? A difference with an interval that counts seeds and clusters of documents.

Another seed gives another model, and other documents give other losses; a difference is real if it would be there with
other seeds *and* other documents. This is the design of radiology's reader studies, seeds in the place of readers and
clusters in the place of cases, and their analysis serves here: jackknife pseudo-values over clusters and components of
variance (Dorfman, Berbaum and Metz, Investigative Radiology 27, 1992), with the denominator and the Satterthwaite
degrees of freedom of Hillis (Statistics in Medicine 26, 2007). Three things are said of this design:

- Documents are the same under every arm, so clusters are paired.
- Seeds are nested in their arms: what a seed does with one text says nothing about what it does with another.
- Clusters are of uneven size, so their degrees of freedom are those of (Σ bytes)² / Σ bytes² even ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Variances:
    """What a difference of two arms varies by. All are variances of the difference, in (bits per byte)²."""

    seed: float
    """Of one seed an arm."""
    clusters: float
    """Of the held-out text at hand, whatever the seeds."""
    freedom_of_seed: float
    """Degrees of freedom of `seed` when every arm has `seeds` seeds, divided by `seeds` - 1."""
    even_clusters: float
    """How many clusters of even size the held-out text is worth."""

    def error(self, seeds: float, text: float = 1.0) -> float:
        """Standard error with so many seeds an arm and so many times the held-out text."""
        return sqrt(self.seed / seeds + self.clusters / text)

    def freedom(self, seeds: float, text: float = 1.0) -> float:
        """Satterthwaite's degrees of freedom of `error` squared."""
        by_seed, by_cluster = self.seed / seeds, self.clusters / text
        spread = by_seed**2 / (self.freedom_of_seed * (seeds - 1)) + by_cluster**2 / (self.even_clusters * text - 1)
        return (by_seed + by_cluster) ** 2 / spread if spread else float("inf")


@dataclass(frozen=True)
class Difference:
    """Bits per byte of `after` minus those of `before`, over seeds and clusters."""

    before: float
    after: float
    seeds: int
    clusters: int
    variances: Variances

    @property
    def delta(self) -> float:
        return self.after - self.before

    @property
    def error(self) -> float:
        return self.variances.error(self.seeds)

    @property
    def freedom(self) -> float:
        return self.variances.freedom(self.seeds)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the difference."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.delta - half, self.delta + half

    @property
    def p_value(self) -> float:
        """Two-sided p of "no difference"."""
        from scipy.special import stdtr

        if self.error == 0:
            return float(self.delta == 0)
        return float(2 * stdtr(self.freedom, -abs(self.delta) / self.error))


def difference(before: Floats, after: Floats, sizes: Floats) -> Difference:
    """Compare bits `[seeds, clusters]` of two arms on clusters of `sizes` bytes, `[clusters]`.

    Raises DataError with fewer than two seeds or two clusters, since then nothing says how far the result can be
    trusted.
    """
    seeds, clusters = before.shape
    if seeds < 2 or clusters < 2:
        raise DataError(
            f"{seeds} seeds and {clusters} clusters of held-out documents allow no interval",
            hint="two of each are the least; documents of one cluster count as one",
        )
    values = [_pseudo_values(bits, sizes) for bits in (before, after)]
    means = [value.mean(axis=1) for value in values]
    of_seed = [float(mean.var(ddof=1)) for mean in means]
    paired = values[1].mean(axis=0) - values[0].mean(axis=0)
    of_text = float(paired.var(ddof=1)) / clusters
    of_both = sum(_interaction(value) for value in values) / (seeds * clusters)
    even = float(sizes.sum() ** 2 / (sizes**2).sum())
    squares = sum(variance**2 for variance in of_seed)
    return Difference(
        before=float(means[0].mean()),
        after=float(means[1].mean()),
        seeds=seeds,
        clusters=clusters,
        variances=Variances(
            seed=sum(of_seed),
            clusters=max(of_text - of_both, 0.0),
            freedom_of_seed=sum(of_seed) ** 2 / squares if squares else 2.0,
            even_clusters=max(even, 1.5),
        ),
    )


def cluster_sums(values: Floats, clusters: NDArray[np.int64]) -> Floats:
    """Sums `[..., clusters]` of `values` `[..., documents]` by cluster number `[documents]`."""
    count = int(clusters.max()) + 1
    rows = values.reshape(-1, values.shape[-1])
    sums = np.stack([np.bincount(clusters, weights=row, minlength=count) for row in rows])
    return np.asarray(sums.reshape(*values.shape[:-1], count), dtype=np.float64)


def _pseudo_values(bits: Floats, sizes: Floats) -> Floats:
    """Jackknife pseudo-values `[seeds, clusters]` of bits per byte, moved so that each seed's mean is its own."""
    whole = bits.sum(axis=1, keepdims=True) / sizes.sum()
    without = (bits.sum(axis=1, keepdims=True) - bits) / (sizes.sum() - sizes)
    values = len(sizes) * whole - (len(sizes) - 1) * without
    return np.asarray(values - values.mean(axis=1, keepdims=True) + whole)


def _interaction(values: Floats) -> float:
    """Mean square of what is left of `[seeds, clusters]` when seeds and clusters are taken out."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + values.mean()
    seeds, clusters = values.shape
    return float((rest**2).sum() / ((seeds - 1) * (clusters - 1)))
