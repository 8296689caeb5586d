"""Several comparisons made together: Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

from liuyi.core.effect import Comparison


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order; reject where below α for a family-wise error of α (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def adjust(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons with `p_adjusted` filled, over those that have a p-value."""
    tested = [index for index, comparison in enumerate(comparisons) if comparison.p_value is not None]
    adjusted = dict(zip(tested, holm([comparisons[i].p_value or 0.0 for i in tested]), strict=True))
    return tuple(
        comparison.model_copy(update={"p_adjusted": adjusted[index]}) if index in adjusted else comparison
        for index, comparison in enumerate(comparisons)
    )
