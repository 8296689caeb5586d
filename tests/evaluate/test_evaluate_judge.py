"""Pairing, decisions, and the steps that make verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from liuyi.core.effect import Effect
from liuyi.core.errors import DataError
from liuyi.evaluate.evaluation import Evaluation, pair
from liuyi.evaluate.judge import Contest, decide, decide_all, reasons_over
from liuyi.evaluate.stats import compare, holm

WRONG, MIXED, RIGHT = [0] * 80, [0, 1] * 40, [1] * 80


def loaded(artifact) -> Evaluation:
    return Evaluation.load(artifact.path, where=artifact.digest[:6])


def contest(evaluated, before: list[int], after: list[int], **columns) -> Contest:
    return Contest.of(loaded(evaluated(before)), loaded(evaluated(after, **columns)))


def test_evaluations_survive_saving(evaluated, tmp_path) -> None:
    evaluation = loaded(evaluated(MIXED, label="SFT"))
    figures = evaluation.save(tmp_path)
    again = Evaluation.load(tmp_path)
    assert again == evaluation
    assert figures["exact"].mean == 0.5
    assert figures["exact"].clusters == 40
    said = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["exact"]
    assert (said["mean"], said["kind"], said["low"]) == (0.5, "binary", figures["exact"].low)


def test_pairing_follows_the_items_not_the_rows(evaluated) -> None:
    before = loaded(evaluated([0, 1, 0, 1, 1, 0]))
    after = loaded(evaluated([1, 0, 0, 1, 1, 1])).select([5, 3, 1, 0, 2, 4])
    left, right = pair(before, after)
    assert right.columns["item"] == left.columns["item"]
    assert list(right.scores("exact")) == [1, 0, 0, 1, 1, 1]


def test_what_cannot_be_paired_is_named(evaluated) -> None:
    before = loaded(evaluated(MIXED))
    with pytest.raises(DataError, match="different eval sets"):
        pair(before, loaded(evaluated(MIXED, evalset="f" * 64)))
    with pytest.raises(DataError, match=r"(?s)1 items of .* are not in .*i79"):
        pair(before, loaded(evaluated(MIXED[:-1])))
    with pytest.raises(DataError, match="different clusters"):
        pair(before, loaded(evaluated(MIXED, cluster=["c"] * 80)))
    with pytest.raises(DataError, match="'i3' occurs twice"):
        loaded(evaluated([0, 1], item=["i3", "i3"]))
    with pytest.raises(DataError, match="did you mean 'exact'"):
        before.scores("exat")


@pytest.mark.parametrize(
    ("before", "after", "decision"),
    [
        (WRONG, MIXED, "promoted"),
        (MIXED, MIXED, "held"),
        (RIGHT, MIXED, "reverted"),
        (WRONG, [0] * 78 + [1] * 2, "held"),
    ],
)
def test_superiority(evaluated, before: list[int], after: list[int], decision: str) -> None:
    ruling = decide(contest(evaluated, before, after), "exact")
    assert ruling.decision == decision
    if decision == "held":
        assert "smallest difference that this test finds" in ruling.reasons[-1]


def test_noninferiority_needs_proof_not_absence_of_proof(evaluated) -> None:
    same = decide(contest(evaluated, RIGHT, RIGHT), "exact", mode="noninferiority", margin=0.1)
    assert same.decision == "promoted"
    tight = decide(contest(evaluated, RIGHT, RIGHT), "exact", mode="noninferiority", margin=0.01)
    assert tight.decision == "held", "80 items cannot prove one point"
    worse = decide(contest(evaluated, RIGHT, MIXED), "exact", mode="noninferiority", margin=0.1)
    assert worse.decision == "reverted"
    assert "Proven worse" in worse.reasons[0]
    with pytest.raises(DataError, match="margin"):
        decide(contest(evaluated, RIGHT, RIGHT), "exact", mode="noninferiority")
    with pytest.raises(DataError, match="margin"):
        decide(contest(evaluated, RIGHT, RIGHT), "exact", margin=0.1)


def test_a_guard_can_hold_and_revert(evaluated) -> None:
    rng = np.random.default_rng(0)
    slightly = (rng.random(80) > 0.05).astype(float).tolist()
    held = decide(contest(evaluated, WRONG, RIGHT, valid_json=slightly), "exact", guards={"valid_json": 0.05})
    assert held.decision == "held"
    assert "valid json" in held.reasons[0]
    broken = decide(contest(evaluated, WRONG, RIGHT, valid_json=[0.0] * 80), "exact", guards={"valid_json": 0.05})
    assert broken.decision == "reverted"
    kept = decide(contest(evaluated, WRONG, RIGHT), "exact", guards={"valid_json": 0.1})
    assert kept.decision == "promoted"
    assert "no worse than 10.0 points" in kept.rule


def test_several_baselines_must_all_be_beaten() -> None:
    rng = np.random.default_rng(1)
    model = rng.normal(1.0, 0.1, size=60)
    easy, near, hard = (
        compare(
            model + shift + 0.05 * rng.normal(size=60), model, clusters=None, kind="real", metric="b", better="lower"
        )
        for shift in (0.5, 0.0, -0.5)
    )
    assert decide_all([easy])[0] == "promoted"
    assert decide_all([easy, near])[0] == "held"
    assert decide_all([easy, hard])[0] == "held"
    assert decide_all([hard])[0] == "reverted"
    assert reasons_over([easy]) == ()
    (blind,) = reasons_over([near])
    assert blind.startswith("The smallest difference that this test finds in four of five cases is ")
    named = [
        each.model_copy(update={"before_name": name}) for each, name in ((easy, "easy"), (near, "near"), (hard, "hard"))
    ]
    assert reasons_over(named) == ("Proven worse than hard.", f"Beside near: t{blind[1:]}")
    adjusted = [c.p_adjusted for c in decide_all([easy, near, hard])[1]]
    assert adjusted == holm([easy.p_value, near.p_value, hard.p_value])


def test_compare_step_splits_by_language_and_by_contamination(run_step, evaluated, publish) -> None:
    leaked = json.dumps([{"role": "user", "content": "question number 4 about the kitchen lights"}])
    chats = publish("chats", chats__parquet=pa.table({"id": ["row1"], "messages": [leaked]}))
    before, after = evaluated(WRONG, label="base"), evaluated(MIXED, label="tuned")
    verdict = run_step(
        "evaluate.compare",
        {"before": before, "after": after, "training": [chats]},
        stage="fine-tuning",
        also=["valid_json"],
    )["verdict"]
    said = json.loads(verdict.file("verdict.json").read_text())
    assert said["decision"] == "promoted"
    assert said["flagged"] == ["i4"]
    shown = {(c["metric"], c["subset"]): c for c in said["comparisons"]}
    assert list(shown)[:2] == [("exact match", ""), ("valid json", "")]
    assert shown["exact match", "en"]["after"] == 1.0
    assert shown["exact match", "zh"]["after"] == 0.0
    assert (shown["exact match", "clean"]["items"], shown["exact match", "flagged"]["items"]) == (79, 1)
    effect = Effect.load(verdict.path)
    assert effect.stage == "fine-tuning"
    assert effect.comparisons[0].before_name == "base"
    assert "row1" in str(effect.blocks[-1])
    assert verdict.manifest.metrics["delta"] == 0.5


def test_compare_step_of_columns(run_step, publish) -> None:
    rng = np.random.default_rng(2)
    size = rng.integers(100, 900, size=60).astype(float)
    table = {
        "item": [f"d{n}" for n in range(60)],
        "cluster": [f"p{n // 3}" for n in range(60)],
        "bytes": size,
        "bits_model": 2 * size,
        "bits_xz": size * rng.normal(2.5, 0.2, size=60),
        "bits_untrained": 8 * size,
    }
    said = {"metrics": {"bits_model": {"title": "this model", "better": "lower"}, "bits_xz": {"title": "xz -9e"}}}
    bits = publish("evaluation", items__parquet=pa.table(table), evaluation__json=said)
    verdict = run_step(
        "evaluate.compare",
        {"before": bits},
        stage="pretraining",
        metric="bits_model",
        baselines=["bits_xz", "bits_untrained"],
        per="bytes",
        unit="bits/byte",
        names={"bits_untrained": "untrained"},
    )["verdict"]
    effect = Effect.load(verdict.path)
    xz, untrained = effect.comparisons
    assert effect.decision == "promoted"
    assert (xz.metric, xz.before_name, xz.after_name) == ("bits/byte", "xz -9e", "this model")
    assert untrained.before_name == "untrained"
    assert xz.before == pytest.approx(table["bits_xz"].sum() / size.sum())
    assert (untrained.before, untrained.after, untrained.delta) == pytest.approx((8, 2, -6))
    assert xz.clusters == 20
    with pytest.raises(DataError, match="nothing to compare with"):
        run_step("evaluate.compare", {"before": bits}, stage="pretraining", metric="bits_model")


def test_documents_of_one_cluster_decide_nothing_and_bound_nothing(run_step, publish) -> None:
    table = {
        "item": list("abc"),
        "cluster": ["p"] * 3,
        "bytes": [9.0, 9, 9],
        "bits_model": [2.0, 3, 4],
        "bits_xz": [5.0, 6, 8],
    }
    said = {"metrics": {"bits_model": {"title": "this model", "better": "lower"}, "bits_xz": {"title": "xz -9e"}}}
    bits = publish("evaluation", items__parquet=pa.table(table), evaluation__json=said)
    verdict = run_step(
        "evaluate.compare",
        {"before": bits},
        stage="pretraining",
        metric="bits_model",
        baselines=["bits_xz"],
        per="bytes",
        unit="bits/byte",
    )["verdict"]
    written = json.loads(verdict.file("verdict.json").read_text())
    (compared,) = written["comparisons"]
    assert (written["decision"], float(compared["low"]), float(compared["high"])) == ("held", -math.inf, math.inf)
    effect = Effect.load(verdict.path)
    assert [(one.low, one.high) for one in effect.comparisons] == [(-math.inf, math.inf)]


def test_gate_gives_the_winner_byte_for_byte(run_step, evaluated, publish) -> None:
    old = publish("checkpoint", config__json={"old": 1}, model__safetensors="old")
    new = publish("checkpoint", config__json={"new": 1}, model__safetensors="new")
    before = evaluated(WRONG, subject=old.digest)
    for answers, decision, winner in ((MIXED, "promoted", new), (WRONG, "held", old)):
        after = evaluated(answers, subject=new.digest)
        inputs = {"incumbent": old, "candidate": new, "before": before, "after": after}
        out = run_step("evaluate.gate", inputs, stage="alignment")
        assert out["checkpoint"].digest == winner.digest
        assert json.loads(out["verdict"].file("verdict.json").read_text())["decision"] == decision
    with pytest.raises(DataError, match="'before' evaluates"):
        run_step("evaluate.gate", inputs | {"before": evaluated(WRONG, subject=new.digest)}, stage="alignment")


def test_the_same_inputs_give_the_same_verdict(run_step, evaluated) -> None:
    inputs = {"before": evaluated(WRONG), "after": evaluated(MIXED)}
    digests = {run_step("evaluate.compare", inputs, stage="fine-tuning")["verdict"].digest for _ in range(2)}
    assert len(digests) == 1
