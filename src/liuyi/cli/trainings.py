"""What `liuyi report` adds about trainings: how fast they went, where they started again, and those still going on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from liuyi.core.effect import Block, Effect
from liuyi.evaluate.figures import number
from liuyi.evaluate.report import Report
from liuyi.evaluate.report.gather import STAGE_OF_ROOM, Section
from liuyi.train.curves import read_samples, samples_block, speed_curves, training_curves
from liuyi.train.log import read_log

if TYPE_CHECKING:
    from liuyi.core.home import Home
    from liuyi.core.records import Metric, RunStep

_SPEEDS = ("tok_s", "learnt_tok_s", "pairs_s", "answers_s", "memory_bytes", "gpu_memory_bytes")


def with_speeds(place: Home, report: Report) -> Report:
    """The report with the curves that the clock gave: the ledger has them, an artifact does not."""
    return report.model_copy(update={"sections": tuple(_with_speed(place, section) for section in report.sections)})


def unfinished(place: Home, run_id: str) -> list[Section]:
    """What trainings of the run have to show that are still going on, or did not come to their end."""
    found = [_unfinished(place, step) for step in place.ledger.steps(run_id) if step.status not in ("done", "cached")]
    return [section for section in found if section is not None]


def _with_speed(place: Home, section: Section) -> Section:
    keys = {made.key for made in place.ledger.producers(section.digest)}
    curves, restarts = _clocked([figure for key in sorted(keys) for figure in _figures(place, key)])
    if not curves:
        return section
    # Of several restarts from one checkpoint the ledger keeps the last.
    times = f" It started again at {restarts} different steps." if restarts > 1 else ""
    times = " It started again at one step." if restarts == 1 else times
    effect = section.effect
    changes = {"blocks": (*effect.blocks, *curves), "summary": effect.summary + times}
    return section.model_copy(update={"effect": effect.model_copy(update=changes)})


def _unfinished(place: Home, step: RunStep) -> Section | None:
    stage = STAGE_OF_ROOM.get(step.step.partition(".")[0])
    folder = place.work_root / step.key
    rows = read_log(folder) if step.key else []
    if stage is None or not rows:
        return None
    figures = _figures(place, step.key)
    restarts = [figure.index for figure in figures if figure.name == "resumed" and figure.index is not None]
    said = samples_block(read_samples(folder))
    blocks = (*training_curves(rows, restarts=restarts), *_clocked(figures)[0], *((said,) if said else ()))
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    trend = f": loss {number(losses[0])} → {number(losses[-1])}" if losses else ""
    told = f" {step.error}" if step.error else ""
    summary = f"{rows[-1]['step'] + 1} steps so far{trend}.{told}"
    effect = Effect(stage=stage, title=f"{step.name}: {step.status}", summary=summary, blocks=blocks)
    return Section(effect=effect, kind="training", digest=step.key, step=step.step)


def _figures(place: Home, key: str) -> list[Metric]:
    """What all runs that worked on a step key entered, in the order of time."""
    steps = place.ledger.steps_with_key(key)
    found = [figure for step in steps for figure in place.ledger.metrics(step.run_id, step.name)]
    return sorted(found, key=lambda figure: figure.created)


def _clocked(figures: Sequence[Metric]) -> tuple[list[Block], int]:
    """The curves of speeds and memory, and at how many steps the training started again."""
    curves: dict[str, list[tuple[float, float]]] = {}
    restarts = [float(figure.index) for figure in figures if figure.name == "resumed" and figure.index is not None]
    for figure in figures:
        if figure.index is not None and (figure.name in _SPEEDS or figure.name.endswith("_mfu")):
            curves.setdefault(figure.name, []).append((float(figure.index), figure.value))
    return list(speed_curves(curves, restarts)), len(restarts)
