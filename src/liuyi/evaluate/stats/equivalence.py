"""Equivalence by two one-sided tests (TOST): is the difference small enough not to matter, either way?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from liuyi.core.effect import Comparison
from liuyi.evaluate.stats.compare import Clusters, Scores, compare


@dataclass(frozen=True)
class Equivalence:
    """`p_lower`: difference > −margin; `p_upper`: difference < margin; equivalent where both are below α."""

    comparison: Comparison
    margin: float
    p_lower: float
    p_upper: float

    @property
    def p_value(self) -> float:
        """The larger of the two one-sided p-values (Schuirmann, 1987)."""
        return max(self.p_lower, self.p_upper)


def tost(
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: Clusters,
    margin: float,
    metric: str,
    weights: ArrayLike | None = None,
    kind: Scores = "binary",
    **rest: Any,
) -> Equivalence:
    """Two one-sided paired tests against ±`margin`, cluster-aware; `rest` as for `compare`."""
    common = {"clusters": clusters, "metric": metric, "weights": weights, "kind": kind, "margin": margin, **rest}
    lower = compare(before, after, **{**common, "better": "higher"})
    upper = compare(before, after, **{**common, "better": "lower"})
    return Equivalence(lower, margin, lower.p_value or 0.0, upper.p_value or 0.0)
