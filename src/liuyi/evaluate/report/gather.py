"""Gather effects from artifacts: their `effect.json`, and the training curves of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Block, Comparison, Effect, Stage
from liuyi.core.errors import DataError
from liuyi.evaluate.figures import number
from liuyi.train.curves import training_curves
from liuyi.train.log import read_log

REPORT = "report.json"
STAGE_OF_ROOM: dict[str, Stage] = {
    "data": "data",
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "align": "alignment",
    "infer": "inference",
    "apply": "application",
}


class Section(BaseModel):
    """One artifact's effect, and which artifact it is."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")
    effect: Effect
    kind: str
    digest: str
    step: str = ""


class Report(BaseModel):
    """The effects in the order of the path."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")
    title: str
    sections: tuple[Section, ...]

    def stages(self) -> list[tuple[Stage, list[Section]]]:
        """The sections of each stage, stages in the order in which they first come."""
        order = list(dict.fromkeys(section.effect.stage for section in self.sections))
        return [(stage, [s for s in self.sections if s.effect.stage == stage]) for stage in order]

    def headline(self) -> str:
        """How many stages were promoted, held and reverted, in words."""
        decisions = [section.effect.decision for section in self.sections if section.effect.decision]
        counted = [(word, decisions.count(word)) for word in ("promoted", "held", "reverted")]
        said = ", ".join(f"{count} {word}" for word, count in counted if count)
        judged = f"{len(decisions)} decision{'s' if len(decisions) != 1 else ''}: {said}" if decisions else ""
        return judged or "No stage was judged."


def main_comparisons(effect: Effect) -> list[Comparison]:
    """The comparisons that stand for an effect in the summary: all items, the deciding metric, every baseline."""
    whole = [comparison for comparison in effect.comparisons if not comparison.subset]
    return [comparison for comparison in whole if comparison.metric == whole[0].metric] if whole else []


def shown_blocks(effect: Effect) -> list[Block]:
    """The blocks that hold anything."""
    return [
        block
        for block in effect.blocks
        if next(getattr(block, part) for part in ("rows", "bars", "series", "samples") if hasattr(block, part))
    ]


def build_report(artifacts: Iterable[Artifact], title: str = "") -> Report:
    """The report of these artifacts, each once; those that have nothing to show are left out."""
    sections = []
    for artifact in {artifact.digest: artifact for artifact in artifacts}.values():
        effect = _effect(artifact)
        if effect is not None:
            step = artifact.manifest.step
            sections.append(Section(effect=effect, kind=artifact.kind, digest=artifact.digest, step=step))
    return Report(title=title or "Effect report", sections=tuple(sections))


def read_report(folder: Path) -> Report:
    """Read `report.json`. Raises DataError if it is not one."""
    path = folder / REPORT
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DataError(f"this is not a report: {error}", where=str(path)) from error


def _effect(artifact: Artifact) -> Effect | None:
    try:
        effect = Effect.load(artifact.path)
    except ValidationError as error:
        raise DataError(
            f"its effect cannot be read: {error}", where=f"{artifact.kind} {artifact.digest[:12]}"
        ) from error
    curves = training_curves(read_log(artifact.path))
    if not curves:
        return effect
    if effect is not None:
        known = {block.title for block in effect.blocks}
        return effect.model_copy(
            update={"blocks": (*effect.blocks, *(curve for curve in curves if curve.title not in known))}
        )
    stage = STAGE_OF_ROOM.get(artifact.manifest.step.partition(".")[0])
    if stage is None:
        return None
    losses = curves[0].series[-1]
    summary = f"{number(losses.x[-1])} steps: {curves[0].title.lower()} {number(losses.y[0])} → {number(losses.y[-1])}."
    return Effect(stage=stage, title="Training", summary=summary, blocks=tuple(curves))
