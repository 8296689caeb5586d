"""What a training has to show for itself: its curves and samples, as part of the effect report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from liuyi.core.effect import Block, Effect, Stage
from liuyi.train.curves import read_samples, samples_block, training_curves
from liuyi.train.log import read_log


def training_effect(
    folder: Path, stage: Stage, title: str, summary: str, columns: Sequence[str] = ("loss",), more: Sequence[Block] = ()
) -> Effect:
    """The effect of the training whose `training.jsonl`, and `samples.jsonl` where there is one, lie in `folder`;
    curves of `columns` come first."""
    said = samples_block(read_samples(folder))
    blocks = (*training_curves(read_log(folder), columns), *more, *((said,) if said else ()))
    return Effect(stage=stage, title=title, summary=summary, blocks=blocks)
