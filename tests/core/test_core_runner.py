"""Runs from beginning to end: what is made, what is skipped, how failures are told, how runs are resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from liuyi.core.errors import ArtifactError, LedgerError, OutOfDisk, OutOfMemory, StepError
from liuyi.core.home import Home
from liuyi.core.owner import this_process
from liuyi.core.recipe import InvalidRecipe, RecipeSource
from liuyi.core.records import Run
from liuyi.core.runner.context import StepContext
from liuyi.core.runner.events import Event, EventLog, follow_events
from liuyi.core.runner.failure import killed_error, pack, unpack
from liuyi.core.runner.forkserver import Ended, ForkServer
from liuyi.core.runner.launch import TAKEN, Attached, cancel_run, resume_run, start_run, state
from liuyi.core.runner.process import BUSY, FAILED, StepOrder, _Figures, lease_name
from liuyi.core.step import get_step
from waiting import lines, wait_for

SUM = """\
recipe: sum
seed: 3
steps:
  a: {step: toy.number, value: 3}
  b: {step: toy.number, value: 4}
  total:
    step: toy.sum
    numbers: ["${a.number}", "${b.number}", "${a.number}"]
"""
CHAIN = "recipe: chain\nsteps:\n  fit: {step: toy.chain}\n"


def source(folder: Path, text: str) -> RecipeSource:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return RecipeSource("recipe.yaml", path, folder)


def finish(attached: Attached) -> tuple[Run, list[Event]]:
    """Follow a run to its end."""
    events = [event for event in attached.events() if event is not None]
    return attached.run(), events


def run(home: Home, text: str, *overrides: str, until: str | None = None) -> tuple[Run, list[Event]]:
    return finish(start_run(home, source(home.path.parent, text), overrides=overrides, until=until))


def statuses(home: Home, ended: Run) -> dict[str, str]:
    return {step.name: step.status for step in home.ledger.steps(ended.id)}


def output(home: Home, ended: Run, step_name: str) -> str:
    """The digest of the one output of a step."""
    (step,) = [step for step in home.ledger.steps(ended.id) if step.name == step_name]
    execution = home.ledger.execution(step.key)
    assert execution is not None
    (digest,) = execution.outputs.values()
    return digest


def test_a_run_makes_artifacts_with_their_lineage(toy_home: Home) -> None:
    ended, events = run(toy_home, SUM)
    assert (ended.status, ended.error, ended.seed) == ("done", "", 3)
    assert statuses(toy_home, ended) == {"a": "done", "b": "done", "total": "done"}
    total = toy_home.store.open(output(toy_home, ended, "total"))
    assert total.file("number.txt").read_text() == "10"
    three, four = output(toy_home, ended, "a"), output(toy_home, ended, "b")
    assert [(each.name, each.digest) for each in total.manifest.inputs] == [
        ("numbers", three),
        ("numbers", four),
        ("numbers", three),
    ]
    (execution,) = toy_home.ledger.producers(total.digest)
    assert execution.key == total.manifest.step_key
    assert execution.run_id == ended.id
    assert [(each.name, each.value) for each in toy_home.ledger.metrics(ended.id, "total")] == [("number.value", 10.0)]
    assert events[0]["event"] == "run"
    assert events[0]["status"] == "running"
    assert events[-1]["status"] == "done"
    finished = {
        event["step"]: event["metrics"] for event in events if event.get("status") == "done" and "step" in event
    }
    assert finished == {"a": {"value": 3.0}, "b": {"value": 4.0}, "total": {"value": 10.0}}
    assert [event["text"] for event in events if event["event"] == "log"] == ["the sum is 10"]
    assert (toy_home.run_dir(ended.id) / "total.log").read_text() == "the sum is 10\n"
    assert not list(toy_home.work_root.iterdir())
    assert not list(toy_home.store.staging.iterdir())
    assert toy_home.ledger.leases() == {}


@pytest.mark.slow
def test_finished_work_is_not_done_again_and_only_what_depends_on_a_change_is(toy_home: Home) -> None:
    first, _ = run(toy_home, SUM)
    again, events = run(toy_home, SUM)
    assert statuses(toy_home, again) == dict.fromkeys(["a", "b", "total"], "cached")
    assert "running" not in [event["status"] for event in events if event["event"] == "step"]
    assert output(toy_home, again, "total") == output(toy_home, first, "total")
    changed, _ = run(toy_home, SUM, "b.value=5")
    assert statuses(toy_home, changed) == {"a": "cached", "b": "done", "total": "done"}
    reseeded, _ = run(toy_home, SUM, "seed=4")
    assert statuses(toy_home, reseeded) == dict.fromkeys(["a", "b", "total"], "done")
    toy_home.store.delete(output(toy_home, first, "b"))
    mended, _ = run(toy_home, SUM)
    assert statuses(toy_home, mended) == {"a": "cached", "b": "done", "total": "cached"}


def test_two_steps_that_are_the_same_work_are_done_once(toy_home: Home) -> None:
    ended, _ = run(toy_home, "recipe: x\nsteps:\n  a: {step: toy.chain, links: 1}\n  b: {step: toy.chain, links: 1}\n")
    assert statuses(toy_home, ended) == {"a": "done", "b": "cached"}


@pytest.mark.slow
def test_changed_data_and_changed_surroundings_are_seen(toy_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "recipe: x\nsteps:\n  read: {step: toy.number, value: 1, file: data.txt}\n  facts: {step: toy.facts}\n"
    data = toy_home.path.parent / "data.txt"
    seen = []
    for content, fact in [("one", "x"), ("one", "x"), ("two", "x"), ("two", "y")]:
        data.write_text(content)
        monkeypatch.setenv("TOY_FACTS", fact)
        ended, _ = run(toy_home, text)
        seen.append(tuple(statuses(toy_home, ended).values()))
    assert seen == [("done", "done"), ("cached", "cached"), ("done", "cached"), ("cached", "done")]


@pytest.mark.slow
def test_a_step_runs_where_the_recipe_is_and_draws_the_same_random_numbers(toy_home: Home) -> None:
    told = []
    for name in ("facts", "the-same-facts"):
        ended_run, _ = run(toy_home, f"recipe: x\nsteps:\n  {name}: {{step: toy.facts}}\n")
        digest = output(toy_home, ended_run, name)
        told.append(json.loads(toy_home.store.open(digest).file("facts.json").read_bytes()))
        assert told[-1].pop("run") == ended_run.id
        assert told[-1].pop("name") == name
        toy_home.store.delete(digest)
    assert told[0] == told[1]
    assert told[0]["cwd"] == str(toy_home.path.parent)
    assert told[0]["preloaded"]
    assert told[0]["stdin"] == ""
    assert 0 <= told[0]["seed"] < 2**31


@pytest.mark.slow
def test_only_what_is_wanted_is_run(toy_home: Home) -> None:
    ended, events = run(toy_home, SUM, until="b")
    assert statuses(toy_home, ended) == {"b": "done"}
    again = resume_run(toy_home, ended.id)
    assert again.worker is None
    assert finish(again) == (ended, events)


def test_nothing_is_entered_or_run_when_the_recipe_is_wrong(toy_home: Home) -> None:
    with pytest.raises(InvalidRecipe, match=r"recipe\.yaml:5: steps\.b\.value: 'value' should be a valid integer"):
        run(toy_home, SUM.replace("value: 4", "value: four"))
    assert toy_home.ledger.runs() == []


def test_a_failed_step_fails_the_run_and_what_follows_is_not_run(toy_home: Home) -> None:
    text = "recipe: x\nsteps:\n  bad: {step: toy.fail, how: error}\n  good: {step: toy.number, value: 1}\n"
    ended, events = run(toy_home, text)
    assert ended.status == "failed"
    assert ended.error.startswith("step 'bad': ZeroDivisionError: division by zero")
    assert statuses(toy_home, ended) == {"bad": "failed", "good": "waiting"}
    log = (toy_home.run_dir(ended.id) / "bad.log").read_text()
    assert log.startswith("about to fail\nthis goes to the log too\nTraceback (most recent call last):\n")
    assert str(toy_home.run_dir(ended.id) / "bad.log") in ended.error
    assert events[-1]["error"]["type"] == "StepError"
    assert toy_home.ledger.leases() == {}


def order(home: Home, step_name: str, params: dict[str, object], *, key: str = "k", run_id: str = "") -> StepOrder:
    run_id = run_id or home.ledger.create_run(recipe="x", text="", source="", overrides=[], seed=0)
    return StepOrder(
        home=home.path,
        run_id=run_id,
        name="bad",
        step=step_name,
        key=key,
        params=params,
        inputs=(),
        seed=0,
        device="cpu",
        log=home.run_dir(run_id) / "bad.log",
    )


def ended(server: ForkServer, asked: StepOrder) -> Ended:
    server.start(asked.model_dump_json())
    result = server.poll(60)
    assert result is not None
    return result


WAYS_TO_FAIL: dict[str, tuple[type[Exception], str]] = {
    "people": (StepError, "table.csv:1: the table has no rows\n  give it some"),
    "error": (StepError, "ZeroDivisionError: division by zero"),
    "memory": (OutOfMemory, "out of memory: MemoryError"),
    "disk": (OutOfDisk, "no space left: [Errno 28] No space left on device: '/somewhere'"),
    "exit": (StepError, "SystemExit: enough"),
    "missing": (StepError, "toy.fail: output 'number' was not written"),
    "twice": (StepError, "toy.fail: output 'number' is written twice"),
    "unknown": (StepError, "toy.fail has no output 'numbre'\n  did you mean 'number'?"),
    "nan": (StepError, "toy.fail: metric 'value' of output 'number' is nan"),
    "empty": (ArtifactError, "an artifact needs at least one file"),
}


def test_every_way_to_fail_is_told_and_leaves_nothing_behind(toy_home: Home, tmp_path: Path) -> None:
    with ForkServer([], tmp_path / "server.log") as server:
        for how, (kind, said) in WAYS_TO_FAIL.items():
            result = ended(server, order(toy_home, "toy.fail", {"how": how}))
            assert result.status == FAILED, how
            error = unpack(result.error)
            assert said in str(error), how
            assert isinstance(error, kind) or result.error["type"] == "DataError", how
        for how, number in [("killed", signal.SIGKILL), ("crash", signal.SIGABRT)]:
            assert ended(server, order(toy_home, "toy.fail", {"how": how})) == Ended(-number, {})
    assert list(toy_home.store.digests()) == []
    assert toy_home.ledger.leases() == {}
    assert toy_home.ledger.executions() == []


def test_a_step_process_does_not_do_what_another_one_does_or_has_done(toy_home: Home, tmp_path: Path) -> None:
    with ForkServer([], tmp_path / "server.log") as server:
        asked = order(toy_home, "toy.number", {"value": 1})
        assert toy_home.ledger.acquire(lease_name("k"), this_process())
        assert ended(server, asked).status == BUSY
        toy_home.ledger.release(lease_name("k"), this_process())
        assert ended(server, asked).status == 0
        assert ended(server, asked).status == BUSY


def test_a_fork_server_that_dies_is_told(toys: Path, tmp_path: Path) -> None:
    with (
        ForkServer(["no_such_module"], tmp_path / "server.log") as server,
        pytest.raises(StepError, match="the process that starts steps has ended"),
    ):
        server.start("{}")
    assert "No module named 'no_such_module'" in (tmp_path / "server.log").read_text()


def test_a_process_killed_for_want_of_memory_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    assert isinstance(killed_error(9, out_of_memory=True, log=tmp_path), OutOfMemory)
    assert "(SIGKILL)" in str(killed_error(9, out_of_memory=False, log=tmp_path))
    assert "crashed (SIGSEGV)" in str(killed_error(11, out_of_memory=False, log=tmp_path))


def test_errors_survive_the_way_between_processes() -> None:
    error = OutOfDisk("no space left", where="/store", hint="make room")
    assert str(unpack(pack(error))) == str(error)
    assert isinstance(unpack(pack(error)), OutOfDisk)
    assert len(json.dumps(pack(StepError("\0" * 10**6, where="\0" * 10**6, hint="\0" * 10**6)))) < 65536


@pytest.mark.slow
def test_a_damaged_input_is_named_and_not_used(toy_home: Home) -> None:
    first, _ = run(toy_home, SUM)
    digest = output(toy_home, first, "b")
    damaged = toy_home.store.open(digest).file("number.txt")
    damaged.write_text("5")
    failed, _ = run(toy_home, SUM.replace('"${a.number}"]', '"${b.number}"]'))
    assert failed.status == "failed"
    assert f"corpus {digest[:12]} is damaged: number.txt: its bytes have changed" in failed.error
    assert statuses(toy_home, failed) == {"a": "cached", "b": "cached", "total": "failed"}


@pytest.mark.slow
def test_verdicts_are_entered_for_every_run_once(toy_home: Home) -> None:
    text = "recipe: x\nsteps:\n  gate: {step: toy.gate}\n"
    for _ in range(2):
        ended_run, _ = run(toy_home, text)
        (verdict,) = toy_home.ledger.verdicts(ended_run.id)
        assert (verdict.step_name, verdict.stage, verdict.decision) == ("gate", "fine-tuning", "held")
        assert (verdict.metric, verdict.delta, verdict.p_value) == ("exact match", 0.1, 0.02)


@pytest.mark.slow
def test_a_cancelled_run_is_resumed_from_where_it_was(toy_home: Home, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    attached = start_run(
        toy_home, source(tmp_path, CHAIN), overrides=["fit.links=30", "fit.pause_s=0.05", f"fit.diary={diary}"]
    )
    wait_for(lambda: len(lines(diary, "link")) >= 5)
    cancelled = cancel_run(toy_home, attached.run_id, wait_s=240)
    assert (cancelled.status, state(cancelled)) == ("cancelled", "cancelled")
    assert statuses(toy_home, cancelled) == {"fit": "cancelled"}
    assert len(lines(diary, "link")) < 30
    _, events = finish(attached)
    assert events[-1]["status"] == "cancelled"
    with pytest.raises(LedgerError, match="is not active: it is cancelled"):
        cancel_run(toy_home, attached.run_id)
    resumed, _ = finish(resume_run(toy_home))
    assert resumed.id == cancelled.id
    assert resumed.status == "done"
    assert statuses(toy_home, resumed) == {"fit": "done"}
    assert [line.split()[1] for line in lines(diary, "link")] == [str(number) for number in range(1, 31)]
    metrics = toy_home.ledger.metrics(resumed.id, "fit", "loss")
    assert [each.index for each in metrics] == list(range(1, 31))


@pytest.mark.slow
def test_two_runs_do_the_same_work_once(toy_home: Home, tmp_path: Path) -> None:
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    overrides = ["fit.links=3", f"fit.diary={diary}", f"fit.gate={gate}"]
    first = start_run(toy_home, source(tmp_path, CHAIN), overrides=overrides)
    wait_for(lambda: lines(diary, "link"))
    second = start_run(toy_home, source(tmp_path, CHAIN), overrides=overrides)
    waiting = []
    for event in second.events():
        if event and event.get("status") == "waiting":
            waiting.append(event["waiting_for"])
            gate.touch()
    assert finish(first)[0].status == second.run().status == "done"
    assert len(lines(diary, "start")) == 1
    assert waiting == [first.run_id]
    assert statuses(toy_home, second.run()) == {"fit": "cached"}


@pytest.mark.slow
def test_a_run_has_one_worker(toy_home: Home, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    attached = start_run(toy_home, source(tmp_path, CHAIN), overrides=["fit.links=2", f"fit.gate={gate}"])
    wait_for(lambda: attached.run().status == "running")
    command = [sys.executable, "-m", "liuyi.core.runner.worker", str(toy_home.path), attached.run_id]
    assert subprocess.run(command, check=False).returncode == TAKEN
    again = resume_run(toy_home, attached.run_id)
    assert again.worker is None
    gate.touch()
    ended_run, events = finish(again)
    assert ended_run.status == "done"
    assert [event["status"] for event in events if event["event"] == "run"] == ["running", "done"]
    assert finish(attached)[0] == ended_run


def test_how_a_run_stands(toy_home: Home) -> None:
    ledger = toy_home.ledger
    run_id = ledger.create_run(recipe="x", text="", source="", overrides=[], seed=0)
    assert state(ledger.run(run_id)) == "queued"
    ledger.update_run(run_id, status="running", worker=this_process())
    assert state(ledger.run(run_id)) == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ledger.update_run(run_id, worker=this_process().replace(f":{os.getpid()}:", f":{gone.pid}:"))
    assert state(ledger.run(run_id)) == "lost"
    ledger.update_run(run_id, worker="elsewhere:1:1", heartbeat=time.time())
    assert state(ledger.run(run_id)) == "running"
    with pytest.raises(LedgerError, match="works on elsewhere"):
        cancel_run(toy_home, run_id)
    ledger.update_run(run_id, heartbeat=time.time() - 3600)
    assert state(ledger.run(run_id)) == "lost"
    assert cancel_run(toy_home, run_id).status == "cancelled"
    with pytest.raises(LedgerError, match="the run's folder is not complete"):
        resume_run(toy_home, run_id)


def test_events_are_followed_as_they_come_and_torn_lines_are_skipped(tmp_path: Path) -> None:
    first = EventLog(tmp_path)
    first.emit("metric", name="loss", value=float("nan"), more={"lr": float("inf"), "step": 1})
    first.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "torn')
    second = EventLog(tmp_path)
    second.emit("run", status="done")
    rounds = iter([True, False])
    seen = list(follow_events(tmp_path, more=lambda: next(rounds)))
    assert [event and event["event"] for event in seen] == ["metric", "run", None]
    assert seen[0] is not None
    assert (seen[0]["value"], seen[0]["more"]) == (None, {"lr": None, "step": 1})
    assert list(follow_events(tmp_path / "nothing")) == []


def test_the_seed_of_a_step_depends_on_the_recipe_seed_and_the_step_alone(toys: Path) -> None:
    from liuyi.core.runner.keys import derived_seed

    seeds = {derived_seed(seed, get_step(name)) for seed in range(50) for name in ("toy.sum", "toy.chain")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_an_output_that_was_begun_and_given_up_is_not_published(toy_home: Home, tmp_path: Path) -> None:
    number = get_step("toy.number")
    (name,) = number.outputs
    port = number.outputs[name]
    step = replace(number, outputs={name: port, "more": replace(port, when=lambda _: True)})
    context = StepContext(
        step=step, name="a", run_id="r", seed=1, workdir=tmp_path, inputs={}, store=toy_home.store,
        events=EventLog(tmp_path), record=lambda *_: None,
    )  # fmt: skip
    with context.output(name) as out:
        (out.path / "number.txt").write_text("3")
    with suppress(ValueError), context.output("more") as out:
        (out.path / "half.txt").write_text("hal")
        raise ValueError
    assert list(context.finished()) == [name]
    context.discard()
    assert not out.path.exists()


def test_figures_that_cannot_be_entered_are_entered_later(toy_home: Home, tmp_path: Path) -> None:
    run_id = toy_home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
    order = StepOrder(
        home=toy_home.path, run_id=run_id, name="a", step="toy.number", key="k", params={}, inputs=(), seed=1,
        device="cpu", log=tmp_path / "log",
    )  # fmt: skip

    class Busy:
        def add_metrics(self, *_: object) -> None:
            figures.add("second", 2, 2.0)
            raise LedgerError("the ledger is busy")

    figures = _Figures(Busy(), order)  # type: ignore[arg-type]
    figures.add("first", 1, 1.0)
    with pytest.raises(LedgerError):
        figures.flush()
    figures._ledger = toy_home.ledger
    for _ in range(2):
        figures.flush()
    assert [(metric.name, metric.index, metric.value) for metric in toy_home.ledger.metrics(run_id)] == [
        ("first", 1, 1.0),
        ("second", 2, 2.0),
    ]
