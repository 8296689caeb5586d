"""What would it take to decide? Power of a comparison with more seeds and more held-out text.

Seeds average their own variance away, held-out text its own, so that the standard error with other numbers of them
follows from the two variances that were observed (Hillis, Obuchowski and Berbaum, Academic Radiology 18, 2011). The
power is that of Student's t against a shift, which is the observed difference: planning from an observed difference is
hopeful, because differences that look large are partly luck.
"""

from __future__ import annotations

from dataclasses import dataclass

from liuyi.pretrain.ablate.difference import Difference, Variances

POWER = 0.8
MOST_SEEDS = 64
MOST_TEXT = 64


@dataclass(frozen=True)
class Needed:
    """Seeds an arm and times the held-out text that would find a difference as large as the observed one."""

    seeds: int
    text: int


def power(delta: float, variances: Variances, seeds: float, text: float = 1.0, *, alpha: float = 0.05) -> float:
    """Chance to find a true difference of `delta` with so many seeds an arm and times the held-out text."""
    from scipy.special import nctdtr, stdtrit

    error, freedom = variances.error(seeds, text), variances.freedom(seeds, text)
    if error == 0:
        return float(delta != 0)
    # From a thousand degrees of freedom on, Student's t is the normal distribution for every purpose here.
    freedom = min(freedom, 1000.0)
    return 1.0 - float(nctdtr(freedom, abs(delta) / error, float(stdtrit(freedom, 1 - alpha / 2))))


def needed(found: Difference, *, alpha: float = 0.05) -> Needed | None:
    """The fewest seeds that give the power with this held-out text, else with 2, 4, 8 … times as much.

    None where `MOST_SEEDS` seeds and `MOST_TEXT` times the text are not enough.
    """
    text = 1
    while text <= MOST_TEXT:
        for seeds in range(found.seeds, MOST_SEEDS + 1):
            if power(found.delta, found.variances, seeds, text, alpha=alpha) >= POWER:
                return Needed(seeds, text)
        text *= 2
    return None


def detectable(found: Difference, *, alpha: float = 0.05) -> float:
    """The smallest true difference that this comparison finds with the power."""
    low, high = 0.0, found.error
    if high == 0:
        return 0.0
    while power(high, found.variances, found.seeds, alpha=alpha) < POWER:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        if power(middle, found.variances, found.seeds, alpha=alpha) < POWER:
            low = middle
        else:
            high = middle
    return high
