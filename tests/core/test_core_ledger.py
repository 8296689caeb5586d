"""The ledger keeps what it is told, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
import time

import pytest

from liuyi.core.artifact import FileEntry, InputRef, Manifest
from liuyi.core.errors import LedgerError
from liuyi.core.ledger import Ledger


def new_run(ledger: Ledger, recipe: str = "quickstart") -> str:
    return ledger.create_run(recipe=recipe, text="seed: 1", source="r.yaml", overrides=["sft.epochs=3"], seed=2**62)


def record(ledger: Ledger, key: str, inputs: list[tuple[str, str]], outputs: dict[str, str], run_id: str = "") -> None:
    ledger.record_execution(
        key=key,
        step="data.clean",
        version=3,
        params={"min_chars": 200, "nested": {"rate": 0.1, "names": ["é", "中"]}},
        seed=7,
        device="cpu",
        inputs=inputs,
        outputs=outputs,
        seconds=1.5,
        run_id=run_id,
    )


def test_a_run_is_kept_and_changed(ledger: Ledger) -> None:
    before = time.time()
    run_id = new_run(ledger)
    run = ledger.run(run_id)
    assert (run.recipe, run.text, run.source, run.overrides, run.seed) == (
        "quickstart",
        "seed: 1",
        "r.yaml",
        ("sft.epochs=3",),
        2**62,
    )
    assert run.status == "queued"
    assert before <= run.created <= time.time()
    ledger.update_run(run_id, status="failed", error="lost \0 and \ud800 found", worker="h:1:2", heartbeat=5.25)
    run = ledger.run(run_id)
    assert (run.status, run.worker, run.heartbeat, run.finished) == ("failed", "h:1:2", 5.25, None)
    assert run.error == "lost \ufffd and ? found"


def test_runs_are_found_by_id_by_prefix_and_as_last(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no run yet"):
        ledger.run("last")
    ids = [new_run(ledger, recipe) for recipe in ("one", "two", "three")]
    assert ledger.run("last").id == ids[-1]
    assert [run.id for run in ledger.runs()] == ids[::-1]
    assert [run.id for run in ledger.runs(limit=2)] == ids[:0:-1]
    assert ledger.run(ids[0][:-1]).id == ids[0]
    with pytest.raises(LedgerError) as caught:
        ledger.run(ids[0][:3])
    assert all(run_id in str(caught.value) for run_id in ids)
    with pytest.raises(LedgerError, match="did you mean"):
        ledger.run(ids[1][:-1] + "_")
    with pytest.raises(LedgerError, match="no run '%'"):
        ledger.run("%")
    with pytest.raises(LedgerError, match="no run ''"):
        ledger.run("")


def test_unknown_fields_and_runs_are_refused(ledger: Ledger) -> None:
    run_id = new_run(ledger)
    with pytest.raises(LedgerError, match=r"no field 'statsu'\n  did you mean 'status'"):
        ledger.update_run(run_id, statsu="done")
    with pytest.raises(LedgerError, match="no field 'idd'"):
        ledger.put_step(run_id, "sft", idd=1)
    with pytest.raises(LedgerError, match="no run 'nosuch'"):
        ledger.update_run("nosuch", status="done")
    with pytest.raises(LedgerError, match="refuses"):
        ledger.put_step("nosuch", "sft", status="done")


def test_steps_are_entered_and_changed_in_the_recipes_order(ledger: Ledger) -> None:
    run_id = new_run(ledger)
    ledger.put_step(run_id, "tokens", step="data.tokens", position=1)
    ledger.put_step(run_id, "docs", step="data.files", position=0)
    ledger.put_step(run_id, "tokens", key="k1", status="done", seconds=2.5)
    ledger.put_step(run_id, "tokens")
    docs, tokens = ledger.steps(run_id)
    assert (docs.name, docs.step, docs.status, docs.key, docs.seconds) == ("docs", "data.files", "waiting", "", None)
    assert (tokens.name, tokens.step, tokens.status, tokens.key, tokens.seconds) == (
        "tokens",
        "data.tokens",
        "done",
        "k1",
        2.5,
    )
    assert ledger.steps_with_key("k1") == [tokens]


def test_executions_are_edges_between_artifacts(ledger: Ledger) -> None:
    run_id = new_run(ledger)
    record(ledger, "k1", [], {"corpus": "a"}, run_id)
    record(ledger, "k2", [("more", "b"), ("corpus", "a"), ("more", "b")], {"kept": "c", "dropped": "d"}, run_id)
    record(ledger, "k3", [("corpus", "c")], {"tokens": "e"})
    ledger.put_step(run_id, "clean", key="k2")
    found = ledger.execution("k2")
    assert found is not None
    assert found.inputs == (("more", "b"), ("corpus", "a"), ("more", "b"))
    assert found.outputs == {"kept": "c", "dropped": "d"}
    assert found.params == {"min_chars": 200, "nested": {"rate": 0.1, "names": ["é", "中"]}}
    assert (found.step, found.version, found.seed, found.device, found.seconds, found.run_id) == (
        "data.clean",
        3,
        7,
        "cpu",
        1.5,
        run_id,
    )
    assert [execution.key for execution in ledger.producers("c")] == ["k2"]
    assert [execution.key for execution in ledger.consumers("a")] == ["k2"]
    assert [execution.key for execution in ledger.executions_of(run_id)] == ["k2"]
    assert [execution.key for execution in ledger.executions()] == ["k1", "k2", "k3"]
    assert ledger.execution("nosuch") is None
    assert ledger.producers("a")[0].inputs == ()


def test_work_done_again_replaces_the_earlier(ledger: Ledger) -> None:
    record(ledger, "k", [("corpus", "a"), ("more", "b")], {"tokens": "c", "extra": "d"})
    record(ledger, "k", [("corpus", "a")], {"tokens": "e"})
    found = ledger.execution("k")
    assert found is not None
    assert found.outputs == {"tokens": "e"}
    assert found.inputs == (("corpus", "a"),)
    assert ledger.producers("c") == []
    assert ledger.consumers("b") == []


def test_artifacts_and_pins(ledger: Ledger) -> None:
    manifest = Manifest(
        kind="corpus",
        digest="d" * 64,
        files=(FileEntry(path="x", bytes=3, sha256="e" * 64),),
        inputs=(InputRef(name="corpus", digest="f" * 64),),
        licences=("MIT",),
    )
    ledger.record_artifact(manifest)
    ledger.record_artifact(manifest)
    assert ledger.artifacts() == {"d" * 64: "corpus"}
    ledger.pin("d" * 64, "the good one")
    ledger.pin("d" * 64, "the best one")
    (pin,) = ledger.pins()
    assert (pin.digest, pin.note) == ("d" * 64, "the best one")
    assert ledger.unpin("d" * 64)
    assert not ledger.unpin("d" * 64)
    assert ledger.pins() == []


def test_metrics_keep_order_and_figures_that_are_no_numbers(ledger: Ledger) -> None:
    run_id = new_run(ledger)
    ledger.add_metrics(run_id, "sft", [("loss", 0, 3.5), ("loss", 1, math.nan), ("loss", 2, math.inf)])
    ledger.add_metrics(run_id, "sft", [("exact", None, 0.8)])
    ledger.add_metrics(run_id, "dpo", [("loss", 2**40, -1.0)])
    ledger.add_metrics(run_id, "dpo", [])
    values = [(metric.index, metric.value) for metric in ledger.metrics(run_id, "sft", "loss")]
    assert values[0] == (0, 3.5)
    assert values[1][0] == 1
    assert math.isnan(values[1][1])
    assert values[2] == (2, math.inf)
    assert [metric.name for metric in ledger.metrics(run_id, "sft")] == ["loss", "loss", "loss", "exact"]
    assert len(ledger.metrics(run_id)) == 5
    assert ledger.metrics(run_id, name="loss")[-1].index == 2**40
    with pytest.raises(LedgerError, match="refuses"):
        ledger.add_metrics("nosuch", "sft", [("loss", 0, 1.0)])


def test_of_a_training_step_that_is_taken_again_the_last_figure_counts(ledger: Ledger) -> None:
    """Figures without a step, and those of other steps and runs, are kept as often as they are entered."""
    run_id, other = new_run(ledger), new_run(ledger)
    ledger.add_metrics(run_id, "sft", [("loss", step, 3.0 - step) for step in range(4)])
    ledger.add_metrics(run_id, "dpo", [("loss", 2, 0.5)])
    ledger.add_metrics(other, "sft", [("loss", 3, 7.0)])
    ledger.add_metrics(run_id, "sft", [("loss", 2, 9.0), ("loss", 3, 8.0), ("exact", None, 0.1), ("exact", None, 0.1)])
    taken = [(metric.index, metric.value) for metric in ledger.metrics(run_id, "sft", "loss")]
    assert taken == [(0, 3.0), (1, 2.0), (2, 9.0), (3, 8.0)]
    assert len(ledger.metrics(run_id, "sft", "exact")) == 2
    assert [metric.value for metric in ledger.metrics(run_id, "dpo")] == [0.5]
    assert [metric.value for metric in ledger.metrics(other)] == [7.0]


def test_verdicts_and_answers(ledger: Ledger) -> None:
    run_id = new_run(ledger)
    ledger.add_verdict(run_id, "gate", "d", "alignment", "held", "exact", 0.02, -0.01, 0.05, 0.2)
    ledger.add_verdict(run_id, "gate", "e", "inference", "promoted", "exact", 0.0, math.nan, math.nan, None)
    first, second = ledger.verdicts(run_id)
    assert (first.decision, first.delta, first.low, first.high, first.p_value) == ("held", 0.02, -0.01, 0.05, 0.2)
    assert math.isnan(second.low)
    assert second.p_value is None
    assert ledger.verdicts() == [first, second] or len(ledger.verdicts()) == 2
    assert ledger.verdicts("nosuch") == []

    ledger.add_answer("chat-1", "m", None, "r", {"messages": ["\ud800 and \0"], "n": 1})
    ledger.add_answer("chat-2", "m", "app", "r", {})
    answer = ledger.answer("chat-1")
    assert answer is not None
    assert answer.detail == {"messages": ["\ud800 and \0"], "n": 1}
    assert (answer.model_digest, answer.app_digest) == ("m", None)
    assert ledger.answer("nosuch") is None
    assert [found.id for found in ledger.answers_of("app")] == ["chat-2"]
    assert [found.id for found in ledger.answers_of("m")] == ["chat-2", "chat-1"]


def test_of_two_servers_accounts_of_an_answer_the_one_that_knows_its_model_is_kept(ledger: Ledger) -> None:
    for engine, before in (("one", "two"), ("two", "one")):
        accounts = {"one": ("m", {"runner": "native"}), "two": ("", {"backend": "openai"})}
        for server in (engine, before):
            ledger.add_answer(engine, accounts[server][0], None, "r", accounts[server][1])
        answer = ledger.answer(engine)
        assert answer is not None
        assert (answer.model_digest, answer.detail) == ("m", {"runner": "native"})
    ledger.add_answer("one", "n", None, "r", {})
    assert [answer.id for answer in ledger.answers_of("m")] == ["two", "one"]
    assert ledger.answers_of("n") == []


def test_a_forgotten_run_leaves_its_executions(ledger: Ledger) -> None:
    run_id, other = new_run(ledger), new_run(ledger)
    ledger.put_step(run_id, "clean", key="k")
    ledger.add_metrics(run_id, "clean", [("documents", None, 5.0)])
    ledger.add_verdict(run_id, "gate", "d", "data", "held", "exact", 0.0, 0.0, 0.0, None)
    record(ledger, "k", [], {"corpus": "a"}, run_id)
    ledger.update_run(run_id, status="done")
    ledger.forget_run(run_id)
    assert [run.id for run in ledger.runs()] == [other]
    assert ledger.metrics(run_id) == []
    assert ledger.verdicts() == []
    assert ledger.steps_with_key("k") == []
    assert ledger.execution("k") is not None
    with pytest.raises(LedgerError, match="no run"):
        ledger.forget_run(run_id)


def test_a_ledger_opens_again_with_all_it_had(ledger: Ledger, ledger_url: str) -> None:
    run_id = new_run(ledger)
    ledger.close()
    again = Ledger(ledger_url)
    assert again.run("last") == ledger.run(run_id)
    again.close()
