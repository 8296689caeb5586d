"""How well scores tell good from bad: AUC, precision, recall, calibration, with intervals over resampled groups.

Both classes count the same, so that precision does not depend on how many examples of each a person happened to give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.data.quality.train import Bools, Floats, Ints

Numbers = NDArray[np.floating] | Ints

RESAMPLES = 1000
LEVEL = 0.95
THRESHOLD = 0.5
_BINS = 10


@dataclass(frozen=True)
class Figure:
    """A measure with its interval."""

    value: float
    low: float
    high: float


def auc(scores: Numbers, good: Bools, weight: Floats | None = None) -> float:
    """The probability that a good example scores higher than a bad one, ties counted half (Mann and Whitney 1947)."""
    weight = np.ones(len(good)) if weight is None else weight
    _, level = np.unique(scores, return_inverse=True)
    above = np.bincount(level, weight * good)
    below = np.bincount(level, weight * ~good, minlength=len(above))
    lower = np.cumsum(below) - below
    return float(above @ (lower + below / 2) / (above.sum() * below.sum()))


def rates(scores: Numbers, good: Bools, threshold: float, weight: Floats | None = None) -> tuple[float, float]:
    """(precision, recall) of keeping what scores at least `threshold`; precision is 1 where nothing is kept."""
    weight = np.ones(len(good)) if weight is None else weight
    kept = weight * (scores >= threshold)
    recall = float((kept * good).sum() / (weight * good).sum())
    wrong = float((kept * ~good).sum() / (weight * ~good).sum())
    return (recall / (recall + wrong) if recall + wrong else 1.0), recall


def calibration_error(scores: Numbers, good: Bools) -> float:
    """The mean distance between score and share of good examples, over ten bins of scores (Naeini et al. 2015)."""
    weight = np.where(good, 0.5 / good.sum(), 0.5 / (~good).sum())
    at = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    claimed = np.bincount(at, weight * scores, minlength=_BINS)
    found = np.bincount(at, weight * good, minlength=_BINS)
    return float(np.abs(claimed - found).sum())


def with_intervals(scores: Numbers, good: Bools, groups: Ints) -> dict[str, Figure]:
    """AUC, and precision and recall at 0.5, with percentile intervals over groups drawn again with replacement."""
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[group].astype(np.float64)
        if (weight * good).any() and (weight * ~good).any():
            drawn.append((auc(scores, good, weight), *rates(scores, good, THRESHOLD, weight)))
    values = (auc(scores, good), *rates(scores, good, THRESHOLD))
    ends = np.quantile(np.array(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: Figure(value, float(low), float(high))
        for name, value, low, high in zip(("AUC", "precision", "recall"), values, *ends, strict=True)
    }
