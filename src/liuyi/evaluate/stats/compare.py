"""One paired comparison, whole: difference, interval, test, and what the test could have seen.

    compare(before, after, clusters=template, metric="exact match")                       # right/wrong per item
    compare(bits_5gram, bits_model, clusters=package, weights=bytes, kind="ratio",
            metric="bits per byte", better="lower")                                       # Σ bits / Σ bytes
    compare(before, after, clusters=template, metric="exact match", margin=0.02)          # no worse than 2 points

How the parts are chosen, by the data's shape alone and never by the result:

| scores | test | interval |
|---|---|---|
| right/wrong, each item its own cluster | McNemar exact | Tango score |
| right/wrong, clusters | McNemar exact on clusters (sign flips) | Tango score on effective items |
| real or ratio | sign flips of cluster sums | BCa bootstrap of clusters |
| right/wrong with a margin | Tango score at the margin | the same score |
| real or ratio with a margin | the BCa bootstrap's tail at the margin | BCa bootstrap of clusters |

An interval never claims more than its exact test: where that test does not reject at 1 − level, it reaches zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from liuyi.core.effect import Comparison
from liuyi.core.errors import DataError
from liuyi.evaluate.figures import extent
from liuyi.evaluate.stats.bootstrap import RESAMPLES, bootstrap_interval, bootstrap_tail, student_quantile
from liuyi.evaluate.stats.clusters import ClusterSums, Floats, cluster_sums, column, effective_items, labels
from liuyi.evaluate.stats.paired import flip_sums, flip_whole_sums, smallest_p
from liuyi.evaluate.stats.power import detectable, mcnemar_detectable
from liuyi.evaluate.stats.proportion import tango, tango_statistic, wilson

Scores = Literal["binary", "real", "ratio"]
Clusters = Sequence[object] | NDArray[np.generic] | None


@dataclass(frozen=True)
class Interval:
    """A mean (or ratio of sums) with its interval; unbounded where there are too few clusters to make one."""

    mean: float
    low: float
    high: float
    level: float
    items: int
    clusters: int


def estimate(
    values: ArrayLike,
    *,
    clusters: Clusters,
    weights: ArrayLike | None = None,
    kind: Scores = "binary",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `values` [items] (or Σ values / Σ weights for "ratio") with an interval over clusters.

    "binary" gives Wilson's interval on effective items, with Student's quantile where there are few clusters;
    the others give the cluster bootstrap's.
    """
    row, numbers, sums = _sums(column(values), clusters, weights, kind)
    if kind != "binary":
        low, high = bootstrap_interval(sums, level, resamples=resamples, seed=seed)
    elif sums.count < 2 and len(row) > 1:
        low, high = 0.0, 1.0
    else:
        worth = effective_items(row, numbers)
        low, high = wilson(sums.estimate * worth, worth, quantile=_quantile(level, sums, len(row)))
    return Interval(sums.estimate, low, high, level, len(row), sums.count)


def compare(
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: Clusters,
    metric: str,
    weights: ArrayLike | None = None,
    kind: Scores = "binary",
    better: Literal["higher", "lower"] = "higher",
    margin: float | None = None,
    unit: str | None = None,
    before_name: str = "before",
    after_name: str = "after",
    subset: str = "",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare `before` with `after`, float [items] each, row by row the same item.

    `clusters` gives one id per item, or None where items are independent. `weights` [items] (≥ 0) are bytes for
    "ratio" (values are then sums, such as bits) and importance for "real". Without `margin`, `p_value` is the
    two-sided p of "no difference". With `margin` (> 0, in the values' unit) it asks "no worse than `margin`?" and
    `p_value` is one-sided: it lies below (1 − level) / 2 exactly where the interval's bad end lies within the margin.

    Raises DataError where shapes differ, values are missing, or "binary" holds anything but 0 and 1.
    """
    old, new = column(before, before_name), column(after, after_name)
    if len(old) != len(new):
        raise DataError(
            f"{before_name} has {len(old)} items and {after_name} has {len(new)}", hint="pair them by item id"
        )
    if margin is not None and margin <= 0:
        raise DataError(f"the margin is {margin}", hint="give how much worse is still acceptable, above zero")
    if kind == "binary" and not (np.isin(old, (0, 1)).all() and np.isin(new, (0, 1)).all()):
        raise DataError(f"'{metric}' is not right/wrong: it has values other than 0 and 1", hint="use kind='real'")
    _, numbers, old_sums = _sums(old, clusters, weights, kind)
    new_sums = _sums(new, clusters, weights, kind)[2]
    sums = ClusterSums(new_sums.numerator - old_sums.numerator, old_sums.denominator, len(old))
    sign = 1.0 if better == "higher" else -1.0
    if kind == "binary":
        part = _compare_binary(new - old, numbers, sums, sign, margin, level)
    else:
        part = _compare_real(sums, sign, margin, level, resamples, seed)
    low, high = part.low, part.high
    unit = ("%" if kind == "binary" else "") if unit is None else unit
    if margin is None and part.p_value >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Comparison(
        metric=metric,
        unit=unit,
        better=better,
        before_name=before_name,
        after_name=after_name,
        before=old_sums.estimate,
        after=new_sums.estimate,
        delta=new_sums.estimate - old_sums.estimate,
        low=low,
        high=high,
        level=level,
        p_value=part.p_value,
        test=part.test if margin is None else f"no worse than {extent(margin, unit)}: {part.test}",
        items=len(old),
        clusters=sums.count,
        minimum_detectable=part.detectable,
        subset=subset,
    )


def is_proven(comparison: Comparison) -> bool:
    """Whether a two-sided comparison found a difference: by its interval and by its test, adjusted if it was."""
    p = comparison.p_adjusted if comparison.p_adjusted is not None else comparison.p_value
    apart = comparison.low > 0 or comparison.high < 0
    return apart and (p is None or p < 1 - comparison.level)


def is_worse(comparison: Comparison) -> bool:
    """Whether after is worse than before, proven or not."""
    return comparison.delta < 0 if comparison.better == "higher" else comparison.delta > 0


@dataclass(frozen=True)
class _Part:
    low: float
    high: float
    p_value: float
    test: str
    detectable: float | None


def _compare_binary(
    difference: Floats, numbers: NDArray[np.int64], sums: ClusterSums, sign: float, margin: float | None, level: float
) -> _Part:
    items = len(difference)
    worth = effective_items(difference, numbers)
    shrink = worth / items
    gained, lost = shrink * (difference > 0).sum(), shrink * (difference < 0).sum()
    low, high = -1.0, 1.0
    if sums.count > 1:
        low, high = tango(gained, lost, worth, quantile=_quantile(level, sums, items))
    single = sums.count == items
    churn = (2 * min(gained, lost) + 1) / (worth + 2)
    able = smallest_p(sums.count) < 1 - level
    seen = mcnemar_detectable(worth, churn, alpha=1 - level) if able else None
    if margin is not None:
        if sign < 0:
            gained, lost = lost, gained
        statistic = tango_statistic(gained, lost, worth, -margin) if sums.count > 1 else float("-inf")
        p_value = _upper_tail(statistic, None if single else sums.count - 1)
        return _Part(low, high, p_value, "Tango score" + ("" if single else ", effective items"), None)
    p_value = flip_whole_sums(np.rint(sums.numerator).astype(np.int64))
    return _Part(low, high, p_value, "McNemar exact" if single else "McNemar exact on clusters (sign flips)", seen)


def _compare_real(
    sums: ClusterSums, sign: float, margin: float | None, level: float, resamples: int, seed: int
) -> _Part:
    low, high = bootstrap_interval(sums, level, resamples=resamples, seed=seed)
    if margin is None:
        seen = detectable(sums.standard_error, sums.count, alpha=1 - level)
        return _Part(low, high, flip_sums(sums.numerator, seed=seed), "sign flips of clusters", seen)
    upright = ClusterSums(sign * sums.numerator, sums.denominator, sums.items)
    p_value = bootstrap_tail(upright, -margin, resamples=resamples, seed=seed)
    return _Part(low, high, p_value, "bootstrap of clusters", None)


def _upper_tail(statistic: float, freedom: int | None) -> float:
    from scipy.special import ndtr, stdtr

    if not np.isfinite(statistic):
        return 0.0 if statistic > 0 else 1.0
    return float(ndtr(-statistic)) if freedom is None else float(stdtr(freedom, -statistic))


def _quantile(level: float, sums: ClusterSums, items: int) -> float | None:
    return None if sums.count == items else student_quantile(level, sums.count - 1)


def _sums(
    values: Floats, clusters: Clusters, weights: ArrayLike | None, kind: Scores
) -> tuple[Floats, NDArray[np.int64], ClusterSums]:
    numbers = labels(clusters, len(values))
    if weights is None:
        if kind == "ratio":
            raise DataError("a ratio needs weights", hint="give the denominators, such as bytes per item")
        return values, numbers, cluster_sums(values, np.ones(len(values)), numbers)
    if kind == "binary":
        raise DataError("right/wrong scores take no weights", hint="use kind='real'")
    below = column(weights, "weights")
    if len(below) != len(values):
        raise DataError(f"{len(values)} items have {len(below)} weights")
    return values, numbers, cluster_sums(values if kind == "ratio" else values * below, below, numbers)
