"""Figures in other tools: read back from TensorBoard and MLflow themselves; trackio and W&B by what they are told."""

from __future__ import annotations

import json
import random
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from drill import digest, small_run
from train_support import Listener

from liuyi.train import export
from liuyi.train.export import STATE_FILE, Exporter, External, Row
from liuyi.train.export_tools import TOOLS
from liuyi.train.guards import GuardConfig
from liuyi.train.log import LOG_FILE
from liuyi.train.params import LoopParams

PARAMS = {"lr": 0.01, "targets": ["q_proj"]}


class Killed(BaseException):
    """As if the process had died, but for the thread that exports, which is waited for."""


class KilledAt(Listener):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        if done == self.step:
            raise Killed


def external(folder: Path) -> External:
    return External("project", "sft-run1", folder / "runs", PARAMS, {"run": "run1", "step": "sft"})


def exporter(name: str, folder: Path, listener: Listener) -> Exporter:
    return Exporter(name, TOOLS[name], external(folder), folder / "work", listener.log)


def run_killed_once(name: str, folder: Path, at: int = 9, steps: int = 14) -> str:
    """A run that is killed after step `at` and goes on from its start; the digest of its weights."""
    killer = KilledAt(at)
    with pytest.raises(Killed):
        small_run(folder, steps=steps, every_s=1e9, listener=killer, onlookers=[exporter(name, folder, killer)])
    listener = Listener()
    model, _, _ = small_run(
        folder, steps=steps, every_s=1e9, listener=listener, onlookers=[exporter(name, folder, listener)]
    )
    assert not [line for line in listener.logs if name in line]
    return digest(model)


def logged(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "work" / LOG_FILE).read_text().splitlines()]


def test_tensorboard_reads_one_curve_of_a_run_that_was_killed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    random.seed(3)
    before = random.getstate()
    weights = run_killed_once("tensorboard", tmp_path)
    assert random.getstate() == before
    found = EventAccumulator(str(tmp_path / "runs/project/sft-run1"))
    found.Reload()
    scalars = found.Scalars("train/loss")
    assert [event.step for event in scalars] == list(range(14))
    assert [event.value for event in scalars] == pytest.approx(logged(tmp_path, "loss"), rel=1e-6)
    assert {"train/lr", "train/grad_norm", "speed/tok_s"} <= set(found.Tags()["scalars"])
    assert b"q_proj" in found.Tensors("params/text_summary")[0].tensor_proto.string_val[0]
    plain, _, _ = small_run(tmp_path / "plain", steps=14, every_s=1e9)
    assert weights == digest(plain)


@pytest.mark.slow
def test_mlflow_has_one_run_with_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    # The thread of what is killed here lives on; a first database takes it a while.
    monkeypatch.setattr(export, "FAILED_FINISH_S", 60.0)
    # A process that was killed before it had noted the id of its run.
    begun = TOOLS["mlflow"](external(tmp_path))
    run_killed_once("mlflow", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (begun.id, "FINISHED", "sft-run1")
    assert (run.data.params["lr"], run.data.params["targets"]) == ("0.01", '["q_proj"]')
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(logged(tmp_path, "loss")))


class Recorded:
    """A run of trackio or W&B that remembers."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished: list[dict[str, int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self, **how: int) -> None:
        self.finished.append(how)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_resumed_run_goes_on_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    runs: list[Recorded] = []

    def init(**told: Any) -> Recorded:
        runs.append(Recorded(told))
        return runs[-1]

    double = types.SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, name, double)
    run_killed_once(name, tmp_path)
    first, second = runs
    assert [step for step, _ in first.rows + second.rows] == list(range(14))
    assert [values["train/loss"] for _, values in first.rows + second.rows] == logged(tmp_path, "loss")
    for run in runs:
        assert (run.told["project"], run.told["name"], run.told["resume"]) == ("project", "sft-run1", "allow")
        assert run.told["config"].items() >= PARAMS.items()
    assert [run.finished for run in runs] == (
        [[{}]] * 2 if name == "trackio" else [[{"exit_code": 1}], [{"exit_code": 0}]]
    )


class Recorder:
    """A tool that keeps what it is given."""

    def __init__(self, run: External) -> None:
        self.id, self.last = run.id or "made up", run.handed_over
        self.rows: list[Row] = []

    def log(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def finish(self, *, failed: bool) -> None: ...


def test_a_step_that_is_rolled_back_stays_as_it_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools: list[Recorder] = []

    def start(run: External) -> Recorder:
        tools.append(Recorder(run))
        return tools[-1]

    monkeypatch.setitem(export.MODULES, "recorder", "json")
    listener = Listener()
    made = Exporter("recorder", start, external(tmp_path), tmp_path / "work", listener.log)
    guard = GuardConfig(rollback_steps=10)
    run = {"steps": 30, "poisoned": (22, 23, 24), "guard": guard, "every_s": 1e9, "listener": listener}
    _, result, _ = small_run(tmp_path, onlookers=[made], **run)  # type: ignore[arg-type]
    assert [jump.step for jump in result.jumps] == [20]
    steps = [step for step, _ in tools[0].rows]
    assert steps == list(range(30))
    assert [step for step, values in tools[0].rows if values.get("train/skipped")] == [22, 23, 24]
    assert json.loads((tmp_path / "work" / STATE_FILE).read_text()) == {"recorder": {"id": "made up", "step": 29}}


def test_a_tool_that_fails_or_is_absent_is_told_once_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass%21word@host/")

    def broken(run: External) -> Recorder:
        raise ConnectionError("hush-hush is no key of https://me:pass%21word@host/runs\nand more")

    monkeypatch.setitem(export.MODULES, "broken", "json")
    monkeypatch.setitem(export.MODULES, "absent", "no_such_module_at_all")
    listener = Listener()
    made = [
        Exporter(name, broken, external(tmp_path), tmp_path / "work", listener.log) for name in ("broken", "absent")
    ]
    model, _, _ = small_run(tmp_path, steps=6, every_s=1e9, listener=listener, onlookers=made)
    plain, _, _ = small_run(tmp_path / "plain", steps=6, every_s=1e9)
    assert digest(model) == digest(plain)
    told = sorted(line for line in listener.logs if "training goes on without it" in line)
    assert told == [
        "absent: ModuleNotFoundError: No module named 'no_such_module_at_all'; training goes on without it "
        "(pip install 'liuyi[absent]')",
        "broken: ConnectionError: *** is no key of https://me:***@host/runs; training goes on without it",
    ]


def test_a_tool_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()

    class Hanging(Recorder):
        def log(self, rows: Sequence[Row]) -> None:
            hanging.wait(60)

    monkeypatch.setattr(export, "FINISH_S", 0.05)
    monkeypatch.setitem(export.MODULES, "hanging", "json")
    listener = Listener()
    made = Exporter("hanging", Hanging, external(tmp_path), tmp_path / "work", listener.log)
    _, result, _ = small_run(tmp_path, steps=6, every_s=1e9, listener=listener, onlookers=[made])
    hanging.set()
    assert result.steps == 6
    assert listener.logs == ["hanging: it has not taken everything within 0.05 s; training goes on without it"]


def test_a_tool_that_hangs_while_it_is_imported_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_come.py").write_text("import time\ntime.sleep(5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(export, "IMPORT_S", 0.05)
    monkeypatch.setitem(export.MODULES, "slow", "slow_to_come")
    listener = Listener()
    made = Exporter("slow", Recorder, external(tmp_path), tmp_path / "work", listener.log)
    made.after_step(None, {"step": 0, "loss": 1.0}, {})
    made.close(failed=False)
    assert listener.logs == ["slow: it cannot be imported within 0.05 s; training goes on without it"]


def test_what_a_tool_says_is_told_without_what_the_environment_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PROXY", "http://me:pass%21word@proxy:8080")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def broken(run: External) -> Recorder:
        raise OSError("false: wJalrXUtnFEMI, pass!word at proxy:8080, https://you:hidden@elsewhere/?token=abc")

    monkeypatch.setitem(export.MODULES, "broken", "json")
    listener = Listener()
    made = Exporter("broken", broken, external(tmp_path), tmp_path / "work", listener.log)
    made.after_step(None, {"step": 0, "loss": 1.0}, {})
    made.close(failed=True)
    assert listener.logs == [
        "broken: OSError: false: ***, *** at proxy:8080, https://you:***@elsewhere/?token=***; "
        "training goes on without it"
    ]


def test_where_figures_go_is_no_part_of_what_is_trained(tmp_path: Path) -> None:
    here = {"folder": tmp_path}
    plain, exported = LoopParams(), LoopParams(export=("tensorboard", "wandb"), export_project="mine")
    assert plain.model_dump(mode="json", context=here) == exported.model_dump(mode="json", context=here)
    with pytest.raises(ValueError, match="tensorboard"):
        LoopParams.model_validate({"export": ["tensorbored"]})
