"""From the losses of all proxies to what they prove: one comparison for each pair of arms and held-out set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from liuyi.core.effect import Comparison, Decision
from liuyi.core.holm import holm
from liuyi.pretrain.ablate.difference import Difference, Floats, difference
from liuyi.pretrain.ablate.heldout import HeldOut
from liuyi.pretrain.ablate.power import Needed, detectable, needed
from liuyi.pretrain.ablate.proxies import Measured

METRIC, UNIT = "bits per byte", "bits/byte"
TEST = "Student's t over seeds and clusters"

Pairs = Literal["baseline", "all"]
Results = Mapping[str, Sequence[Measured]]
"""For each arm, in the order of the arms, one result a seed."""


@dataclass(frozen=True)
class Contest:
    """Two arms on one held-out set."""

    before: str
    after: str
    heldout: HeldOut
    subset: str
    """The held-out set's label where there are several."""
    found: Difference
    p_adjusted: float
    level: float
    needed: Needed | None
    """What would decide it; None where it is decided, or where nothing within reach would."""

    @property
    def decided(self) -> bool:
        return self.p_adjusted < 1 - self.level

    @property
    def better(self) -> str:
        """The arm with fewer bits, proven or not."""
        return self.after if self.found.delta < 0 else self.before

    def comparison(self) -> Comparison:
        """As the report shows it."""
        low, high = self.found.interval(self.level)
        return Comparison(
            metric=METRIC,
            unit=UNIT,
            better="lower",
            before_name=self.before,
            after_name=self.after,
            before=self.found.before,
            after=self.found.after,
            delta=self.found.delta,
            low=low,
            high=high,
            level=self.level,
            p_value=self.found.p_value,
            p_adjusted=self.p_adjusted,
            test=TEST,
            items=len(self.heldout.documents.ids),
            clusters=self.found.clusters,
            minimum_detectable=detectable(self.found, alpha=1 - self.level),
            subset=self.subset,
        )


def decide(results: Results, heldout: Sequence[HeldOut], baseline: str, pairs: Pairs, level: float) -> list[Contest]:
    """Compare arms on every set, with Holm's correction over all comparisons.

    What an undecided one needs is asked at the level that Holm would hold it to if all undecided ones were alike.
    """
    names = list(results)
    chosen = [(baseline, name) for name in names if name != baseline]
    if pairs == "all":
        chosen += [(a, b) for at, a in enumerate(names) for b in names[at + 1 :] if baseline not in (a, b)]
    found = []
    for at, text in enumerate(heldout):
        bits = {name: final_bits(results[name], at, text) for name in names}
        found += [(a, b, text, difference(bits[a], bits[b], text.cluster_bytes)) for a, b in chosen]
    adjusted = holm([one.p_value for *_, one in found])
    undecided = sum(p >= 1 - level for p in adjusted)
    return [
        Contest(
            before,
            after,
            text,
            text.label if len(heldout) > 1 else "",
            one,
            p,
            level,
            needed(one, alpha=(1 - level) / undecided) if p >= 1 - level and one.delta else None,
        )
        for (before, after, text, one), p in zip(found, adjusted, strict=True)
    ]


def final_bits(measured: Sequence[Measured], set_number: int, text: HeldOut) -> Floats:
    """Bits `[seeds, clusters]` at the end of training."""
    return np.stack([text.by_cluster(one.bits[set_number][-1]) for one in measured])


def ruling(contests: Sequence[Contest], baseline: str) -> tuple[Decision, str]:
    """What becomes of the baseline's data, and the arm to use.

    Promoted is an arm that is proven better than the baseline on a held-out set and proven worse on none; of several,
    the one that saves the most bits per byte, summed over the sets. With every arm proven worse on some set and better
    on none, the change is reverted; else it is held.
    """
    saved: dict[str, float] = {}
    better: set[str] = set()
    worse: set[str] = set()
    for one in contests:
        if one.before == baseline:
            saved[one.after] = saved.get(one.after, 0.0) - one.found.delta
            if one.decided:
                (better if one.found.delta < 0 else worse).add(one.after)
    winners = sorted(better - worse, key=lambda arm: -saved[arm])
    if winners:
        return "promoted", winners[0]
    return ("reverted" if worse - better == set(saved) else "held"), baseline
