"""Cluster bootstrap intervals of means, weighted means, ratios of sums and paired differences."""

from __future__ import annotations

from math import sqrt

import numpy as np

from liuyi.evaluate.stats.clusters import ClusterSums, Floats

RESAMPLES = 10_000
FEWEST_CLUSTERS = 8
"""Below this many clusters their resamples say too little about the tails, and Student's t is used."""
_CHUNK = 4_000_000


def resample(sums: ClusterSums, resamples: int, rng: np.random.Generator) -> Floats:
    """Estimates of `resamples` samples of whole clusters drawn with replacement, float64 [resamples]."""
    count = sums.count
    out = np.empty(resamples)
    rows = max(1, _CHUNK // count)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, size=(min(rows, resamples - start), count), dtype=np.int32)
        below = sums.denominator[drawn].sum(axis=1)
        above = sums.numerator[drawn].sum(axis=1)
        out[start : start + len(drawn)] = above / np.where(below > 0, below, np.nan)
    return out[np.isfinite(out)]


def bootstrap_interval(
    sums: ClusterSums, level: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected, accelerated interval over clusters, with tails widened for small samples.

    BCa after Efron, JASA 82 (1987), acceleration by the jackknife over clusters; the nominal tails are those that
    make the interval as wide as Student's t (the "expanded" percentiles of Hesterberg, Am. Stat. 69, 2015).
    With fewer than `FEWEST_CLUSTERS` clusters it is the jackknife t interval, and unbounded with one cluster.
    """
    if sums.count < FEWEST_CLUSTERS:
        return student_interval(sums, level)
    draws = _Draws(sums, resamples, seed)
    z = student_quantile(level, sums.count - 1) * draws.expansion
    low, high = draws.quantile(-z), draws.quantile(z)
    return low, high


def bootstrap_tail(sums: ClusterSums, value: float, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """One-sided p-value of "the truth is at most `value`": the tail at which the interval's low end reaches it.

    The same BCa distribution as `bootstrap_interval`, or the jackknife t with few clusters; 1 for a single cluster.
    """
    from scipy.special import stdtr

    if sums.count < 2:
        return 1.0
    error = sums.standard_error
    if error == 0:
        return float(sums.estimate <= value)
    if sums.count < FEWEST_CLUSTERS:
        return float(stdtr(sums.count - 1, (value - sums.estimate) / error))
    draws = _Draws(sums, resamples, seed)
    return float(stdtr(sums.count - 1, draws.place(value) / draws.expansion))


class _Draws:
    """Resampled estimates with Efron's bias and acceleration: from normal quantiles to values, and back."""

    def __init__(self, sums: ClusterSums, resamples: int, seed: int) -> None:
        from scipy.special import ndtri

        self.values = np.sort(resample(sums, resamples, np.random.default_rng(seed)))
        self.expansion = sqrt(sums.count / (sums.count - 1))
        self.bias = float(ndtri(self._share_below(sums.estimate)))
        without = sums.without_one
        influence = without.mean() - without
        spread = float((influence**2).sum())
        self.acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def quantile(self, z: float) -> float:
        """The value where a normal variable would stand at `z`."""
        from scipy.special import ndtr

        moved = self.bias + z
        share = ndtr(self.bias + moved / max(1 - self.acceleration * moved, 1e-6))
        return float(np.quantile(self.values, share))

    def place(self, value: float) -> float:
        """Where `value` stands as a normal quantile; the inverse of `quantile`."""
        from scipy.special import ndtri

        moved = float(ndtri(self._share_below(value))) - self.bias
        return moved / max(1 + self.acceleration * moved, 1e-6) - self.bias

    def _share_below(self, value: float) -> float:
        """Share of the draws below `value`, ties by half, never quite 0 or 1."""
        count = len(self.values)
        left, right = (int(np.searchsorted(self.values, value, side=side)) for side in ("left", "right"))
        return float(np.clip((left + right) / (2 * count), 1 / count, 1 - 1 / count))


def student_interval(sums: ClusterSums, level: float = 0.95) -> tuple[float, float]:
    """Estimate ± t · cluster-robust standard error with clusters − 1 degrees of freedom; unbounded for one cluster."""
    if sums.count < 2:
        return float("-inf"), float("inf")
    half = student_quantile(level, sums.count - 1) * sums.standard_error
    return sums.estimate - half, sums.estimate + half


def student_quantile(level: float, freedom: float) -> float:
    """The two-sided Student quantile: 12.7 for 95 % and one degree of freedom, 1.96 for many."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
