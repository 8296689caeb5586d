"""The curves of a training, from its log and from what the ledger has of its speed; for the effect report.

Each is drawn as it was, the mean and the range of each stretch where there are too many points to draw, with a moving
average over it; skipped steps, rollbacks and restarts are marked.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from liuyi.core.effect import Curves, Mark, Sample, Samples, Series

SAMPLES_FILE = "samples.jsonl"
MOST_POINTS = 400
SMOOTHED_SHARE = 25
"""The moving average reaches over about a twenty-fifth of a run."""
SMOOTHED_FROM = 50
"""Points below which a curve is as easily read without."""
SHOWN_SAMPLES = 6
"""Steps whose samples are shown of each prompt, the first and the last among them."""
TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "chosen_logprob": "Log-probability of chosen answers",
    "rejected_logprob": "Log-probability of rejected answers",
    "reward": "Reward",
    "kl": "KL divergence from the reference",
    "entropy": "Entropy",
    "tok_s": "Tokens a second",
    "learnt_tok_s": "Tokens learnt from a second",
    "memory_bytes": "Peak memory, bytes",
}
Points = Sequence[tuple[float, float]]


def training_curves(
    rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ("loss",), restarts: Iterable[float] = ()
) -> list[Curves]:
    """Curves of every figure in the log, those named in `first` before the others; `restarts` are steps."""
    marks = events(rows, restarts)
    names = [name for row in rows for name in row if name not in ("step", "batch", "skipped")]
    return [
        curve
        for name in dict.fromkeys([*first, *names])
        if (curve := curve_of(name, [(row["step"], row[name]) for row in rows if name in row], marks)) is not None
    ]


def speed_curves(figures: Mapping[str, Points], restarts: Iterable[float] = ()) -> list[Curves]:
    """Curves of what the clock said, by name, such as `tok_s`: (step, value) in the order in which it was told."""
    marks = tuple(Mark(x=step, name="restarted") for step in restarts)
    # A step that was taken twice has two speeds; the later one stands.
    made = [curve_of(name, sorted(dict(points).items()), marks) for name, points in figures.items()]
    return [curve for curve in made if curve is not None]


def events(rows: Sequence[Mapping[str, Any]], restarts: Iterable[float] = ()) -> tuple[Mark, ...]:
    """Where steps were skipped, where the run went on with later data after a rollback, and where it started again."""
    skipped = [Mark(x=row["step"], name=f"skipped: {row['skipped']}") for row in rows if "skipped" in row]
    jumps = [
        Mark(x=after["step"], name="rolled back")
        for before, after in pairwise(rows)
        if "batch" in after and after["batch"] - after["step"] > before["batch"] - before["step"]
    ]
    return (*skipped, *jumps, *(Mark(x=step, name="restarted") for step in restarts))


def curve_of(name: str, points: Iterable[tuple[Any, Any]], marks: Sequence[Mark]) -> Curves | None:
    """One figure over the steps; None where there are no two numbers."""
    finite = [(float(x), float(y)) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
    if len(finite) < 2:
        return None
    series = [_as_it_was(name, finite)]
    if len(finite) >= SMOOTHED_FROM and name != "lr":
        series = [series[0].model_copy(update={"faint": True}), _smoothed(finite)]
    title = TITLES.get(name) or name.replace("_", " ").capitalize()
    if name.endswith("_mfu"):
        title = f"Fraction of the machine's {name.removesuffix('_mfu')} GEMM peak"
    return Curves(
        title=title, x_label="training step", y_label=name, series=tuple(series), marks=tuple(marks), note=_note(marks)
    )


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most 400 points: the mean of each stretch, so that noise is smoothed and no stretch is skipped."""
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in _parts(points)]


def samples_block(rows: Sequence[Mapping[str, Any]]) -> Samples | None:
    """What the model said to each prompt as it learnt; None where it was not asked."""
    if not rows:
        return None
    steps = list(dict.fromkeys(row["step"] for row in rows))
    size = max(1, len(steps) - 1)
    shown = {steps[round(at * size / (SHOWN_SAMPLES - 1))] for at in range(SHOWN_SAMPLES)} if steps[1:] else {*steps}
    samples = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        said = [row for row in rows if row["prompt"] == prompt and row["step"] in shown]
        text = "\n\n".join(f"— step {row['step']} —\n{row['text']}{'' if row['ended'] else ' …'}" for row in said)
        title = prompt if prompt.strip() else "the beginning of a document"
        samples.append(Sample(title=title, text=text, note=f"step {said[0]['step']} to {said[-1]['step']}"))
    return Samples(title="Samples", samples=tuple(samples))


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The rows of `samples.jsonl`; none where there is no such file."""
    path = folder / SAMPLES_FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _parts(points: Points) -> list[Points]:
    size = -(-len(points) // MOST_POINTS)
    return [points[start : start + size] for start in range(0, len(points), size)]


def _as_it_was(name: str, points: Points) -> Series:
    x, y = zip(*thinned(points), strict=True)
    if len(points) <= MOST_POINTS:
        return Series(name=name, x=x, y=y)
    low, high = (tuple(edge(y for _, y in part) for part in _parts(points)) for edge in (min, max))
    return Series(name=name, x=x, y=y, low=low, high=high)


def _smoothed(points: Points) -> Series:
    """An exponential moving average, its first values taken as what they are the mean of."""
    keep = 1 - 2 / (len(points) / SMOOTHED_SHARE + 1)
    total = weight = 0.0
    averages = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        averages.append((x, total / weight))
    x_values, y_values = zip(*(part[-1] for part in _parts(averages)), strict=True)
    return Series(name="smoothed", x=x_values, y=y_values)


def _note(marks: Sequence[Mark]) -> str:
    counts = Counter(mark.name for mark in marks)
    return "marked: " + ", ".join(f"{name} × {count}" for name, count in counts.items()) if counts else ""
