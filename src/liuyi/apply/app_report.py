"""What building an application shows: how well confidence means what it says, and what each rung may answer."""

from __future__ import annotations

import shutil
from pathlib import Path

from liuyi.apply.app import FACILITY, RULES, SCHEMA, Calibration
from liuyi.apply.calibrate import Threshold
from liuyi.core.effect import Curves, Effect, Series, Table


def copy_knowledge(source: Path, target: Path) -> None:
    """Copy rules, facility and schema: an application stands by itself, beside its model."""
    for name in (RULES, FACILITY, SCHEMA):
        shutil.copyfile(source / name, target / name)


def build_effect(calibration: Calibration) -> Effect:
    """The application's calibration, for the report."""
    plain, guarded = calibration.plain, calibration.guarded
    return Effect(
        stage="application",
        title="Calibrated confidence",
        summary=(
            f"The model's bare probability is off by {calibration.raw_error:.1%} on average; calibrated it is off by "
            f"{calibration.error:.1%} on requests that it was not fitted on. {_said(plain)}"
        ),
        blocks=(
            Curves(
                title="Reliability",
                x_label="confidence",
                y_label="share that is right",
                series=(
                    Series(
                        name="calibrated",
                        x=tuple(each.confidence for each in calibration.bins),
                        y=tuple(each.accuracy for each in calibration.bins),
                    ),
                    Series(name="perfect", x=(0.0, 1.0), y=(0.0, 1.0)),
                ),
                note="Each point is a tenth of the held-out requests; confidences are fitted on other templates.",
            ),
            Table(
                title="What the rungs may answer",
                columns=("rung", "held-out answers", "wrong", "error rate is below", "allowed", "answers from"),
                rows=(
                    *(
                        (
                            f"rules, {name}",
                            int(found["answers"]),
                            int(found["wrong"]),
                            _percent(found["bound"]),
                            _percent(plain.risk),
                            "always" if found["bound"] <= plain.risk else "never",
                        )
                        for name, found in calibration.rules.items()
                    ),
                    _row("model", plain),
                    _row("model, guarded", guarded),
                ),
                note=f"Upper bounds hold with {plain.level:.0%} confidence (Clopper-Pearson, clusters counted).",
            ),
        ),
    )


def _row(name: str, threshold: Threshold) -> tuple[str | float | int, ...]:
    start = f"confidence {threshold.value:.3f}" if threshold.holds else "never"
    return (
        name,
        threshold.answered,
        threshold.wrong,
        _percent(threshold.bound),
        _percent(threshold.risk),
        start,
    )


def _said(threshold: Threshold) -> str:
    if not threshold.holds:
        return f"No confidence keeps the error rate below {threshold.risk:.0%}, so the model hands everything off."
    return (
        f"From a confidence of {threshold.value:.2f} on, at most {threshold.risk:.0%} of its answers are wrong: "
        f"{threshold.wrong} of {threshold.answered} on held-out requests."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"
