"""What a trial shows: an evaluation with a column for each figure, and the application's part of the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from liuyi.apply.trial import SYSTEMS, System, Tried
from liuyi.core.effect import Bars, Comparison, Effect, Sample, Samples, Table
from liuyi.evaluate.evaluation import Evaluation, Metric
from liuyi.evaluate.stats import adjust, compare

FEEDBACK = "feedback.jsonl"
_NAMES: dict[System, str] = {"rules": "rules alone", "model": "model alone", "cascade": "cascade"}


def as_evaluation(tried: Sequence[Tried], *, subject: str, label: str) -> Evaluation:
    """One row for each request; `cascade_right` decides. Rates of the other systems stand beside it."""
    columns: dict[str, Sequence[object]] = {
        "item": [each.id for each in tried],
        "cluster": [each.cluster for each in tried],
        "lang": [each.language for each in tried],
        "kind": [each.evalset for each in tried],
        "prompt": [each.text for each in tried],
        "reference": [each.reference for each in tried],
        "output": [each.by["cascade"].output for each in tried],
        "rung": [each.rung for each in tried],
        "guarded": [float(each.guarded) for each in tried],
    }
    metrics: dict[str, Metric] = {}
    for system in reversed(SYSTEMS):
        name = _NAMES[system]
        metrics[f"{system}_right"] = Metric(f"handled right, {name}")
        metrics[f"{system}_answered"] = Metric(f"answered, {name}")
        metrics[f"{system}_wrong_action"] = Metric(f"wrong actions, {name}", better="lower")
        metrics[f"{system}_wrong_guarded"] = Metric(
            f"wrong actions on guarded devices, {name}", kind="ratio", better="lower", per="guarded"
        )
        columns[f"{system}_right"] = [float(each.by[system].right) for each in tried]
        columns[f"{system}_answered"] = [float(each.by[system].answered) for each in tried]
        columns[f"{system}_wrong_action"] = [float(each.by[system].wrong_action) for each in tried]
        columns[f"{system}_wrong_guarded"] = [float(each.by[system].wrong_guarded) for each in tried]
    if not any(each.guarded for each in tried):
        metrics = {name: metric for name, metric in metrics.items() if metric.per != "guarded"}
    return Evaluation(metrics, columns, name="application", label=label, subject=subject)


def write_feedback(path: Path, tried: Sequence[Tried]) -> int:
    """What the cascade got wrong or handed off, as conversations to learn from, one JSON a line; how many.

    They are cases of the eval sets: learning from them spends those sets, so they are written and never used here.
    """
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": each.text},
                    {"role": "assistant", "content": each.reference},
                ],
                "why": each.rung if not each.by["cascade"].answered else f"wrong: {each.by['cascade'].output}",
                "evalset": each.evalset,
            },
            ensure_ascii=False,
        )
        for each in tried
        if not each.by["cascade"].right
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def trial_effect(tried: Sequence[Tried]) -> Effect:
    """The application's part of the report: every eval set, every system, the cascade compared with each rung."""
    sets = list(dict.fromkeys(each.evalset for each in tried))
    comparisons = [
        comparison
        for subset in ("", *sets)
        for comparison in _comparisons([each for each in tried if subset in ("", each.evalset)], subset)
    ]
    guarded = [each for each in tried if each.guarded]
    cascade = [each.by["cascade"] for each in tried]
    return Effect(
        stage="application",
        title="Facility desk: the cascade against each rung alone",
        summary=(
            f"On {len(tried):,} requests the cascade handles {fmean(h.right for h in cascade):.1%} right, hands "
            f"{fmean(not h.answered for h in cascade):.1%} to a person and takes a wrong action on "
            f"{fmean(h.wrong_action for h in cascade):.1%}. On {len(guarded)} requests about guarded devices "
            f"{_rate([each.by['cascade'].wrong_guarded for each in guarded]):.1%} are wrong actions, "
            "and none is carried out without a confirmation."
        ),
        comparisons=adjust(comparisons),
        blocks=(
            _table(tried, sets),
            Table(
                title="Requests about guarded devices",
                columns=("system", "requests", "right", "wrong actions", "wrong actions, %"),
                rows=tuple(
                    (
                        _NAMES[system],
                        len(guarded),
                        sum(each.by[system].right for each in guarded),
                        sum(each.by[system].wrong_guarded for each in guarded),
                        round(100 * _rate([each.by[system].wrong_guarded for each in guarded]), 1),
                    )
                    for system in SYSTEMS
                ),
                note="Locks, alarm, gates, garage doors, main valves. The cascade asks for a confirmation each time.",
            ),
            Bars(
                title="Who answered, in the cascade",
                bars=tuple(
                    (name, float(count))
                    for name, count in Counter(
                        each.rung if each.rung.startswith("hand-off") else " + ".join(sorted(set(each.rung.split())))
                        for each in tried
                    ).most_common()
                ),
                unit="requests",
            ),
            Samples(title="Where the cascade is wrong", samples=_mistakes(tried)),
        ),
    )


_CONTESTS: tuple[tuple[str, str, tuple[System, ...]], ...] = (
    ("handled right", "right", ("rules", "model")),
    ("wrong actions", "wrong_action", ("model",)),
)


def _comparisons(tried: Sequence[Tried], subset: str) -> list[Comparison]:
    def column(system: System, what: str) -> list[float]:
        return [float(getattr(each.by[system], what)) for each in tried]

    clusters = [each.cluster for each in tried]
    return [
        compare(
            column(before, what),
            column("cascade", what),
            clusters=clusters,
            metric=metric,
            better="higher" if what == "right" else "lower",
            before_name=_NAMES[before],
            after_name=_NAMES["cascade"],
            subset=subset,
        )
        for metric, what, befores in _CONTESTS
        for before in befores
    ]


def _table(tried: Sequence[Tried], sets: Sequence[str]) -> Table:
    rows = []
    for name in sets:
        items = [each for each in tried if each.evalset == name]
        for system in SYSTEMS:
            handled = [each.by[system] for each in items]
            rows.append(
                (
                    name,
                    _NAMES[system],
                    len(items),
                    round(100 * _rate([h.right for h in handled]), 1),
                    round(100 * _rate([not h.answered for h in handled]), 1),
                    round(100 * _rate([h.wrong_action for h in handled]), 1),
                    round(100 * _rate([h.right for h in handled if h.answered]), 1),
                )
            )
    return Table(
        title="By eval set and system",
        columns=(
            "eval set",
            "system",
            "requests",
            "handled right, %",
            "handed off, %",
            "wrong actions, %",
            "right of answered, %",
        ),
        rows=tuple(rows),
    )


def _rate(values: Sequence[bool]) -> float:
    return fmean(values) if values else 0.0


def _mistakes(tried: Sequence[Tried]) -> tuple[Sample, ...]:
    wrong = [each for each in tried if each.by["cascade"].answered and not each.by["cascade"].right]
    return tuple(
        Sample(
            title=each.text,
            text=f"right   {each.reference}\nanswer  {each.by['cascade'].output}",
            note=f"{each.evalset}, {each.rung}",
        )
        for each in wrong[:: max(1, len(wrong) // 12)][:12]
    )
