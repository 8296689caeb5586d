"""Several comparisons made together, with Holm's correction filled in."""

from __future__ import annotations

from collections.abc import Sequence

from liuyi.core.effect import Comparison
from liuyi.core.holm import holm


def adjust(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons with `p_adjusted` filled, over those that have a p-value."""
    tested = [index for index, comparison in enumerate(comparisons) if comparison.p_value is not None]
    adjusted = dict(zip(tested, holm([comparisons[i].p_value or 0.0 for i in tested]), strict=True))
    return tuple(
        comparison.model_copy(update={"p_adjusted": adjusted[index]}) if index in adjusted else comparison
        for index, comparison in enumerate(comparisons)
    )
