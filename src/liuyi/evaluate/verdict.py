"""The `verdict` artifact: `verdict.json` and the effect that the report shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Block, Effect, Stage, Table
from liuyi.core.step import Staging
from liuyi.evaluate.contamination import Hit
from liuyi.evaluate.figures import sentence
from liuyi.evaluate.judge import Contest, Ruling

VERDICT = "verdict.json"
_SHOWN_HITS = 20


def write_verdict(
    out: Staging,
    ruling: Ruling,
    contest: Contest,
    metric: str,
    *,
    stage: Stage,
    title: str,
    hits: Mapping[int, Hit],
) -> None:
    """Write `verdict.json` and `effect.json`, and the deciding comparison's figures as metrics."""
    main = ruling.comparisons[0]
    verdict = {
        "stage": stage,
        "decision": ruling.decision,
        "rule": ruling.rule,
        "reasons": ruling.reasons,
        "before": contest.before.subject,
        "after": contest.after.subject,
        "comparisons": [comparison.as_json() for comparison in ruling.comparisons],
        "flagged": [str(contest.after.columns["item"][row]) for row in sorted(hits)],
    }
    text = json.dumps(verdict, indent=1, ensure_ascii=False, allow_nan=False)
    (out.path / VERDICT).write_text(text + "\n", encoding="utf-8")
    summary = " ".join([f"{sentence(main)}.", *ruling.reasons, f"Rule: {ruling.rule}."])
    Effect(
        stage=stage,
        title=title or stage.capitalize(),
        summary=summary,
        comparisons=ruling.comparisons,
        decision=ruling.decision,
        blocks=tuple(_blocks(contest, metric, hits)),
    ).save(out.path)
    out.metrics.update({"before": main.before, "after": main.after, "delta": main.delta})


def copy_artifact(artifact: Artifact, out: Staging) -> None:
    """Copy an artifact's files byte for byte: what is published has the same digest."""
    for file in artifact.manifest.files:
        target = out.path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(file.path), target)
    out.licences.update(artifact.manifest.licences)
    out.metrics.update(artifact.manifest.metrics)


def _blocks(contest: Contest, metric: str, hits: Mapping[int, Hit]) -> list[Block]:
    blocks: list[Block] = []
    samples = contest.changed_samples(metric)
    if samples:
        blocks.append(samples)
    if hits:
        rows = [(contest.after.texts("prompt")[row], hits[row].words, hits[row].source) for row in sorted(hits)]
        blocks.append(
            Table(
                title=f"{len(hits)} of {len(contest.after)} items occur in the training data",
                columns=("item", "words found", "where"),
                rows=tuple(rows[:_SHOWN_HITS]),
                note=f"the first {_SHOWN_HITS}" if len(rows) > _SHOWN_HITS else "",
            )
        )
    return blocks
