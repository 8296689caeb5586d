"""What could the test have seen? Power, and the smallest difference found with 80 % power."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from liuyi.evaluate.stats.paired import smallest_p


def mcnemar_power(items: float, changed: float, difference: float, *, alpha: float = 0.05) -> float:
    """Chance that McNemar's exact test finds a true paired `difference` of shares.

    `items` (effective) items, of which a share `changed` ≥ |difference| changes. Unconditional: summed over how many
    items happen to change.
    """
    from scipy.special import bdtr, bdtrc, gammaln, xlog1py, xlogy

    count = round(items)
    if count < 1:
        return 0.0
    changed = min(1.0, max(changed, abs(difference)))
    numbers = np.arange(count + 1)
    ways = gammaln(count + 1) - gammaln(numbers + 1) - gammaln(count - numbers + 1)
    chance = np.exp(ways + xlogy(numbers, changed) + xlog1py(count - numbers, -changed))
    critical = _critical(count, alpha)
    usable = critical >= 0
    gained = (1 + abs(difference) / changed) / 2 if changed else 0.5
    low = bdtr(critical[usable], numbers[usable], gained)
    high = bdtrc(numbers[usable] - critical[usable] - 1, numbers[usable], gained)
    return float((chance[usable] * (low + high)).sum())


@lru_cache(maxsize=64)
def _critical(count: int, alpha: float) -> NDArray[np.int64]:
    """For each number of changed items, the most losses that still reject; −1 where none does."""
    from scipy.special import bdtr, bdtrik

    numbers = np.arange(count + 1)
    most = np.floor(np.nan_to_num(bdtrik(alpha / 2, numbers, 0.5), nan=-1)).astype(np.int64)
    over = np.asarray(bdtr(np.maximum(most, 0), numbers, 0.5) > alpha / 2)
    return np.asarray(most - over)


def mcnemar_detectable(items: float, churn: float, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest paired difference of shares that McNemar's exact test finds with `power`; None if there is none.

    `churn` is the share of items that change with nothing gained by it: as many turn right as turn wrong. What is
    gained comes on top.
    """

    def seen(difference: float) -> float:
        return mcnemar_power(items, churn + difference, difference, alpha=alpha)

    if seen(1.0) < power:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if seen(middle) < power:
            low = middle
        else:
            high = middle
    return high


def detectable(standard_error: float, clusters: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference found with `power`, from the (cluster-robust) standard error of a difference.

    (t₁₋α/₂ + t_power) · standard error with clusters − 1 degrees of freedom (Bloom, Evaluation Review 19, 1995).
    None where the clusters are too few for any result to reach `alpha`.
    """
    from scipy.special import stdtrit

    if clusters < 2 or smallest_p(clusters) >= alpha:
        return None
    return float(stdtrit(clusters - 1, 1 - alpha / 2) + stdtrit(clusters - 1, power)) * standard_error
