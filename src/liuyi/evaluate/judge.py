"""From two evaluations to comparisons, and from comparisons to a decision.

What the decisions mean, in `decide`:

- `promoted`: the candidate is proven better (or, asked so, proven no worse than the margin), and every guarded metric
  is proven no worse than its own margin. All of this has to hold at once, each at α, so no correction is needed.
- `reverted`: not promoted, and the candidate is proven worse in the deciding metric or in a guarded one, at α after
  Holm's correction over these.
- `held`: neither is proven. The incumbent stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from liuyi.core.effect import Comparison, Decision, Sample, Samples
from liuyi.core.errors import DataError
from liuyi.evaluate.evaluation import Evaluation, Metric, distinct, pair, rows_where
from liuyi.evaluate.figures import extent, is_margin_test
from liuyi.evaluate.stats import adjust, compare, is_proven, is_worse

Mode = Literal["superiority", "noninferiority"]


@dataclass(frozen=True)
class Contest:
    """Before and after, item by item, with the names that people see."""

    before: Evaluation
    after: Evaluation
    before_name: str = "before"
    after_name: str = "after"
    level: float = 0.95
    seed: int = 0

    @classmethod
    def of(cls, before: Evaluation, after: Evaluation, *, level: float = 0.95, seed: int = 0) -> Contest:
        """Pair two evaluations by item; their labels are the names where these differ."""
        before, after = pair(before, after)
        named = before.label and after.label and before.label != after.label
        names = (before.label, after.label) if named else ("before", "after")
        return cls(before, after, *names, level=level, seed=seed)

    def compare(
        self,
        metric: str,
        *,
        against: str = "",
        margin: float | None = None,
        before_name: str = "",
        after_name: str = "",
        title: str = "",
        subset: str = "",
        rows: Sequence[int] | None = None,
    ) -> Comparison:
        """One metric; `against` is the column of `before` if it has another name, `rows` a part of the items."""
        said = self.after.metric(metric)
        before = self.before if rows is None else self.before.select(rows)
        after = self.after if rows is None else self.after.select(rows)
        return compare(
            before.scores(against or metric),
            after.scores(metric),
            clusters=after.columns["cluster"],
            weights=after.scores(said.per) if said.per else None,
            kind=said.kind,
            metric=title or said.title,
            better=said.better,
            unit=said.unit,
            margin=margin,
            before_name=before_name or self.before_name,
            after_name=after_name or self.after_name,
            subset=subset,
            level=self.level,
            seed=self.seed,
        )

    def subsets(self, metric: str, columns: Sequence[str]) -> list[Comparison]:
        """The metric for each value of each column that has more than one, such as each language."""
        made = []
        for column in columns:
            values = distinct(self.after.texts(column))
            if len(values) > 1:
                made += [
                    self.compare(metric, subset=value, rows=rows_where(self.after, column, value)) for value in values
                ]
        return made

    def split(self, metric: str, flagged: Sequence[int]) -> list[Comparison]:
        """The metric for clean and for flagged items, where there are both."""
        chosen = set(flagged)
        clean = [row for row in range(len(self.after)) if row not in chosen]
        parts = (("clean", clean), ("flagged", sorted(chosen)))
        return [self.compare(metric, subset=name, rows=rows) for name, rows in parts if rows] if chosen else []

    def changed_samples(self, metric: str, count: int = 4) -> Samples | None:
        """Answers that became right and answers that became wrong, spread over the items; None without any."""
        if self.after.metric(metric).kind != "binary" or not any(self.after.texts("output")):
            return None
        difference = self.after.scores(metric) - self.before.scores(metric)
        right = self.after.scores(metric)
        groups = [
            ("turned right", [row for row, moved in enumerate(difference) if moved > 0]),
            ("turned wrong", [row for row, moved in enumerate(difference) if moved < 0]),
            ("still wrong", [row for row, moved in enumerate(difference) if moved == 0 and not right[row]]),
        ]
        samples = [
            self._sample(row, f"{title} ({len(rows)} in all)")
            for title, rows in groups
            for row in rows[:: max(1, len(rows) // count)][:count]
        ]
        return Samples(title="Answers", samples=tuple(samples)) if samples else None

    def _sample(self, row: int, note: str) -> Sample:
        lines = [("reference", self.after.texts("reference")[row])]
        lines += [
            (self.before_name, self.before.texts("output")[row]),
            (self.after_name, self.after.texts("output")[row]),
        ]
        prompt = self.after.texts("prompt")[row] or str(self.after.columns["item"][row])
        width = max(len(name) for name, _ in lines)
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
        return Sample(title=prompt, text=text, note=note)


@dataclass(frozen=True)
class Ruling:
    """A decision with everything it rests on."""

    decision: Decision
    rule: str
    comparisons: tuple[Comparison, ...]
    """The deciding one first, then guards, then subsets."""
    reasons: tuple[str, ...] = field(default=())


def decide(
    contest: Contest,
    metric: str,
    *,
    mode: Mode = "superiority",
    margin: float | None = None,
    guards: Mapping[str, float] | None = None,
) -> Ruling:
    """Promote, hold or revert the candidate `after` by one metric, fixed beforehand, and its guards {metric: margin}.

    Raises DataError for "noninferiority" without a margin.
    """
    if (mode == "noninferiority") != (margin is not None):
        raise DataError(f"mode '{mode}' and margin {margin} do not go together", hint="a margin is for noninferiority")
    alpha = 1 - contest.level
    guards = dict(guards or {})
    plain = contest.compare(metric)
    main = contest.compare(metric, margin=margin) if margin is not None else plain
    watched = {name: contest.compare(name, margin=limit) for name, limit in guards.items()}
    two_sided = adjust([plain, *(contest.compare(name) for name in guards)])
    worse = [c.metric for c in two_sided if is_worse(c) and is_proven(c)]
    if margin is None:
        proven = not is_worse(plain) and is_proven(plain)
        rule = f"{plain.metric} proven better (two-sided p < {alpha:g})"
    else:
        proven = main.p_value is not None and main.p_value < alpha / 2
        rule = f"{plain.metric} proven no worse than {extent(margin, main.unit)} (one-sided p < {alpha / 2:g})"
    failed = [c.metric for c in watched.values() if c.p_value is None or c.p_value >= alpha / 2]
    for name, limit in guards.items():
        rule += f"; {watched[name].metric} proven no worse than {extent(limit, watched[name].unit)}"
    decision: Decision = "promoted" if proven and not failed else "reverted" if worse else "held"
    return Ruling(decision, rule, (main, *watched.values()), tuple(_reasons(main, decision, proven, failed, worse)))


def decide_all(comparisons: Sequence[Comparison]) -> tuple[Decision, tuple[Comparison, ...]]:
    """A decision over several baselines, with Holm's correction: promoted if proven better than all of them, reverted
    if proven worse than all, held otherwise. Gives the comparisons with their adjusted p-values."""
    adjusted = adjust(comparisons)
    worse = sum(map(is_worse, adjusted))
    if not all(map(is_proven, adjusted)) or worse not in (0, len(adjusted)):
        return "held", adjusted
    return ("reverted" if worse else "promoted"), adjusted


def reasons_over(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Why not all of them prove an improvement: those proven worse, and what the test could not have seen in others."""
    several = len(comparisons) > 1
    reasons = []
    worse = [c.before_name for c in comparisons if is_proven(c) and is_worse(c)]
    if worse:
        reasons.append(f"Proven worse than {' and '.join(worse)}.")
    for comparison in comparisons:
        if not is_proven(comparison) and (seen := blind_spot(comparison)):
            reasons.append(f"Beside {comparison.before_name}: {seen[0].lower()}{seen[1:]}" if several else seen)
    return tuple(reasons)


def _reasons(main: Comparison, decision: str, proven: bool, failed: list[str], worse: list[str]) -> list[str]:
    reasons = []
    if worse and decision == "reverted":
        reasons.append(f"Proven worse: {', '.join(worse)}.")
    if proven and failed:
        reasons.append(f"Not proven to be within its margin: {', '.join(failed)}.")
    if decision == "held" and not proven:
        reasons.append(blind_spot(main))
    return [reason for reason in reasons if reason]


def blind_spot(comparison: Comparison) -> str:
    """What the test could not have seen, for a comparison that proved nothing; empty where that is not known."""
    if is_margin_test(comparison):
        return ""
    if comparison.minimum_detectable is None:
        return f"{comparison.clusters} clusters are too few for this test to find any difference."
    smallest = extent(comparison.minimum_detectable, comparison.unit)
    return f"The smallest difference that this test finds in four of five cases is {smallest}."


def as_metric(
    metric: Metric, *, per: str, unit: str | None, better: Literal["higher", "lower"] | None, title: str
) -> Metric:
    """The metric with what a recipe says about it in place of what the evaluation says."""
    return Metric(
        title=title or metric.title,
        kind="ratio" if per else metric.kind,
        unit=metric.unit if unit is None else unit,
        better=better or metric.better,
        per=per or metric.per,
    )
