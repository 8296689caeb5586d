"""What a training has to show for itself: its curve, as part of the effect report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from liuyi.core.effect import Block, Curves, Effect, Series, Stage
from liuyi.train.loop import LOG_FILE

POINTS = 120


def training_effect(
    folder: Path, stage: Stage, title: str, summary: str, columns: Sequence[str] = ("loss",), more: Sequence[Block] = ()
) -> Effect:
    """The effect of the training whose `training.jsonl` lies in `folder`, with a curve for each of `columns`."""
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "skipped" not in row]
    blocks: list[Block] = [
        Curves(
            title=column.replace("_", " "),
            x_label="step",
            y_label=column.replace("_", " "),
            series=(_smoothed([(row["step"], row[column]) for row in rows], column),),
            note="each point is the mean of the steps since the one before it",
        )
        for column in columns
        if rows
    ]
    return Effect(stage=stage, title=title, summary=summary, blocks=(*blocks, *more))


def _smoothed(points: Sequence[tuple[int, float]], name: str) -> Series:
    """Means over equal stretches, few enough to draw."""
    size = -(-len(points) // POINTS)
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return Series(
        name=name,
        x=tuple(float(part[-1][0]) for part in parts),
        y=tuple(sum(value for _, value in part) / len(part) for part in parts),
    )
