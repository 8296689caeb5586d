"""Items grouped into clusters: sums per cluster, and how many independent items they are worth.

Items of one cluster (sentences of one template, documents of one package) stand or fall together. Everything
below resamples, flips or counts clusters, never items: taking dependent items for independent ones makes
intervals too short and finds differences where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from liuyi.core.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClusterSums:
    """Numerator and denominator summed within each cluster, float64 [clusters] each.

    A mean of items is Σ numerator / Σ denominator with a denominator of one per item; bits per byte is the same
    with bits above and bytes below.
    """

    numerator: Floats
    denominator: Floats
    items: int

    @property
    def count(self) -> int:
        return len(self.numerator)

    @property
    def estimate(self) -> float:
        return float(self.numerator.sum() / self.denominator.sum())

    @property
    def without_one(self) -> Floats:
        """The estimates with each cluster left out in turn, float64 [clusters]."""
        above = self.numerator.sum() - self.numerator
        below = self.denominator.sum() - self.denominator
        return np.asarray(above / np.maximum(below, np.finfo(np.float64).tiny))

    @property
    def standard_error(self) -> float:
        """Jackknife standard error over clusters; 0 for a single cluster.

        Holds for means and ratios alike and, unlike the plain sandwich, stays honest where clusters are few and of
        uneven size (MacKinnon, Nielsen and Webb, Journal of Econometrics 232, 2023; there CV3J).
        """
        count = self.count
        if count < 2:
            return 0.0
        return float(np.sqrt((count - 1) / count * ((self.without_one - self.estimate) ** 2).sum()))


def labels(clusters: Sequence[object] | NDArray[np.generic] | None, items: int) -> Ints:
    """Cluster numbers 0 … clusters−1 as int64 [items]; `None` makes every item its own cluster."""
    if clusters is None:
        return np.arange(items, dtype=np.int64)
    if len(clusters) != items:
        raise DataError(f"{items} items have {len(clusters)} cluster ids", hint="give one cluster id per item")
    numbers: dict[object, int] = {}
    return np.fromiter((numbers.setdefault(name, len(numbers)) for name in clusters), dtype=np.int64, count=items)


def column(values: ArrayLike, name: str = "values") -> Floats:
    """`values` as finite float64 [items]. Raises DataError where a value is missing or the shape is wrong."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name} must be a non-empty row of numbers, not shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"{name} has {(~np.isfinite(array)).sum()} missing or non-finite values, first at item {bad}")
    return array


def cluster_sums(numerator: Floats, denominator: Floats, numbers: Ints) -> ClusterSums:
    """Sum items [items] by cluster number [items]."""
    count = int(numbers.max()) + 1
    below = np.bincount(numbers, weights=denominator, minlength=count)
    if (denominator < 0).any() or below.sum() <= 0:
        raise DataError("weights must not be negative, and their sum must be above zero")
    above = np.bincount(numbers, weights=numerator, minlength=count)
    return ClusterSums(above.astype(np.float64), below.astype(np.float64), len(numerator))


def effective_items(values: Floats, numbers: Ints) -> float:
    """How many independent items the clustered `values` [items] are worth, between 1 and `items`.

    `items / design effect`, where the design effect is the clustered variance of the mean over the variance that
    independent items would have (Kish, Survey Sampling, 1965). Where all values agree, or there is one cluster only,
    nothing can be estimated and items of one cluster are counted as fully dependent: (Σ n)² / Σ n².
    """
    sizes = np.bincount(numbers).astype(np.float64)
    items = len(values)
    if (sizes == 1).all():
        return float(items)
    independent = float(values.var(ddof=1)) / items if items > 1 else 0.0
    if independent == 0.0 or len(sizes) < 2:
        return float(items**2 / (sizes**2).sum())
    clustered = cluster_sums(values, np.ones(items), numbers).standard_error ** 2
    return float(items / max(1.0, clustered / independent))
