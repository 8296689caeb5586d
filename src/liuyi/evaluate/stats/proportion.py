"""Intervals for a share of right answers, and for the difference of two shares on the same items."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt


def clopper_pearson(right: float, items: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share: at least `level` coverage whatever the true share (Clopper and Pearson, 1934).

    `right` and `items` may be fractional (effective counts of clustered items).
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(right, items - right + 1, tail)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, items - right, 1 - tail)) if right < items else 1.0
    return low, high


def wilson(right: float, items: float, level: float = 0.95, *, quantile: float | None = None) -> tuple[float, float]:
    """Score interval of a share (Wilson, 1927): close to nominal coverage on average, short, never outside 0 … 1.

    `quantile` replaces the normal quantile of `level`, such as by Student's t for few clusters.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2)) if quantile is None else quantile
    share = right / items
    centre = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    return max(0.0, centre - half), min(1.0, centre + half)


def tango_statistic(gained: float, lost: float, items: float, difference: float) -> float:
    """Score statistic for "the true difference of paired shares is `difference`" (Tango, Stat. Med. 17, 1998).

    `gained` items were wrong before and are right after, `lost` the other way round; the observed difference is
    (gained − lost) / items. Standard normal under the hypothesis; falls as `difference` grows. With
    `difference` 0 its square is McNemar's statistic without continuity correction.
    """
    b = -gained - lost + (2 * items - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    constrained = (sqrt(max(b * b - 8 * items * c, 0.0)) - b) / (4 * items)
    variance = items * (2 * constrained + difference * (1 - difference))
    excess = gained - lost - items * difference
    if variance <= 1e-12:
        return 0.0 if abs(excess) < 1e-12 else (float("inf") if excess > 0 else float("-inf"))
    return excess / sqrt(variance)


def tango(
    gained: float, lost: float, items: float, level: float = 0.95, *, quantile: float | None = None
) -> tuple[float, float]:
    """Score interval of the difference of paired shares (Tango, 1998); honest even where no item changed."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2)) if quantile is None else quantile
    observed = (gained - lost) / items
    low = _root(lambda x: tango_statistic(gained, lost, items, x) - z, -1.0, observed)
    high = _root(lambda x: tango_statistic(gained, lost, items, x) + z, observed, 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection; an end where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
