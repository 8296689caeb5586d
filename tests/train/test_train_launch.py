"""Several processes that do a step together: what they tell and make, what ends them, and what starts them again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing import SignalException

import in_process
from in_ranks import fork_ranks
from liuyi.align.steps import PreferenceParams
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, LiuyiError, StepError
from liuyi.core.home import Home
from liuyi.core.recipe import RecipeSource
from liuyi.core.runner import restarts
from liuyi.core.runner.launch import cancel_run, start_run
from liuyi.core.runner.restarts import MAX_STARTS, Restarts
from liuyi.finetune.steps import SftParams
from liuyi.pretrain.steps import TrainParams
from liuyi.train import launch
from liuyi.train.params import LoopParams, ParallelParams
from liuyi.train.rank import FOLDER, failure, find_order, tell_failure
from waiting import wait_for

KEY = "0" * 64


def together(home: Home, **params: object) -> Artifact:
    """The output of two processes of the toy step, launched from this one."""
    params = {"processes": 2, "diary": str(home.path / "diary"), **params}
    return in_process.run_step(home, home.work_dir(KEY), "toy.together", {}, **params)["sum"]


def starts(home: Home) -> list[tuple[int, int]]:
    """Rank and pid of every process that began."""
    path = home.path / "diary"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(rank), int(pid)) for rank, pid in (line.split() for line in lines)]


def are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (TrainParams, {"processes": 6, "shard": 4}),
        (TrainParams, {"processes": 4, "tensor": 2, "context": 3}),
        (TrainParams, {"processes": 3, "nodes": 2, "rendezvous": "one:29500"}),
        (TrainParams, {"processes": 2, "nodes": 2}),
        (TrainParams, {"processes": 2, "nodes": 2, "rendezvous": "one"}),
        (TrainParams, {"processes": 2, "rendezvous": "one:29500"}),
        (TrainParams, {"processes": 2, "inject": "kill:2@5"}),
        (LoopParams, {"inject": "kill:1@5"}),
        (TrainParams, {"processes": 2, "seq_len": 256, "batch_tokens": 768}),
        (SftParams, {"processes": 2, "context": 2, "neftune_alpha": 5}),
        (SftParams, {"processes": 2, "seq_len": 256, "batch_tokens": 768}),
        (PreferenceParams, {"processes": 2, "batch_pairs": 7}),
        (PreferenceParams, {"processes": 2, "context": 2}),
    ],
)
def test_processes_that_do_not_fit_are_refused(params: type[LoopParams], reason: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        params.model_validate(reason)


def test_a_batch_is_shared_by_those_that_see_other_rows_only() -> None:
    fitting = {"processes": 8, "tensor": 2, "context": 2, "seq_len": 256, "batch_tokens": 512}
    assert TrainParams.model_validate(fitting).layout().sizes == (2, 1, 2, 2)
    with pytest.raises(ValidationError, match="a batch of 2 rows cannot be shared evenly by 4"):
        TrainParams.model_validate(fitting | {"context": 1})


def test_of_several_errors_the_first_is_kept(tmp_path: Path) -> None:
    assert failure(tmp_path) is None
    tell_failure(tmp_path, DataError("first", where="here", hint="so"))
    tell_failure(tmp_path, StepError("second"))
    kept = failure(tmp_path)
    assert isinstance(kept, DataError)
    assert (kept.message, kept.where, kept.hint) == ("first", "here", "so")
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]


def test_what_keeps_something_new_may_start_again(tmp_path: Path) -> None:
    deaths = Restarts(tmp_path)
    for number in range(2):
        assert [deaths.again() for _ in range(MAX_STARTS)] == [True] * MAX_STARTS
        (tmp_path / f"{number}").mkdir()
        (tmp_path / ".logs" / f"{number}").mkdir(parents=True)
    assert [deaths.again() for _ in range(MAX_STARTS)] == [True] * MAX_STARTS
    (tmp_path / ".logs" / "new").touch()
    assert not deaths.again()


@pytest.mark.slow
def test_ranks_tell_and_make_what_one_process_would(toy_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    made = together(toy_home)
    assert made.file("sum.txt").read_text() == "1.0"
    assert (made.manifest.metrics, made.manifest.licences) == ({"total": 1.0}, ("CC0-1.0",))
    told = [json.loads(line) for line in (toy_home.work_dir(KEY) / "events.jsonl").read_text().splitlines()]
    assert [event["text"] for event in told if event["event"] == "log"] == ["starting 2 processes", "all are there"]
    assert [event["shown"] for event in told if event["event"] == "progress"] == [{"ranks": 1.0}]
    assert [event["value"] for event in told if event["event"] == "metric"] == [1.0, None]
    assert sorted(rank for rank, _ in starts(toy_home)) == [0, 1]


def test_more_processes_than_a_machine_can_bear_are_not_started(
    toy_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(StepError, match="9 processes are too many for this machine: 8 at most"):
        together(toy_home, processes=9)
    assert starts(toy_home) == []


def test_paths_of_ranks_start_at_the_recipe_s_folder(
    toy_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they have been started, on another machine say, and however they were told where their order lies."""
    fork_ranks(monkeypatch)
    forked = launch._run_agent
    recipe, elsewhere = tmp_path / "recipe", tmp_path / "some" / "where"
    for folder in (recipe, elsewhere):
        folder.mkdir(parents=True)

    def from_elsewhere(folder: Path, params: ParallelParams) -> None:
        with contextlib.chdir(elsewhere):
            forked(Path(os.path.relpath(folder)), params)

    monkeypatch.setattr(launch, "_run_agent", from_elsewhere)
    monkeypatch.chdir(recipe)
    assert together(toy_home, diary="diary").file("sum.txt").read_text() == "1.0"
    assert sorted(line.split()[0] for line in (recipe / "diary").read_text().splitlines()) == ["0", "1"]


def test_a_bug_is_told_by_the_rank_that_has_it(
    toy_home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fork_ranks(monkeypatch)
    with pytest.raises(StepError, match="rank 1: ValueError: a mistake of ours") as raised:
        together(toy_home, what="bug")
    assert "traceback" in raised.value.hint


def test_an_error_that_the_spine_does_not_know_keeps_its_words(
    toy_home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fork_ranks(monkeypatch)
    with pytest.raises(StepError, match="rank 1: the prompt is too long\n  cut it"):
        together(toy_home, what="refuse")


@pytest.mark.slow
def test_a_death_starts_all_again_and_an_error_ends_all(toy_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    """One rank is killed; when all have started again, it finds an error: that one is told, once, and no death more."""
    with pytest.raises(DataError) as raised:
        together(toy_home, what="lose-and-fail")
    assert str(raised.value) == "numbers.txt: rank 1: this is no number\n  write one"
    assert are_gone([pid for _, pid in starts(toy_home)])
    assert sorted(rank for rank, _ in starts(toy_home)) == [0, 0, 1, 1]
    told = "".join(capfd.readouterr())
    assert told.count("a process has died") == 1
    assert "rank 1: last words" in told
    assert "DataError" not in told


@pytest.mark.slow
def test_ranks_that_die_again_and_again_are_given_up(
    toy_home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restarts, "MAX_STARTS", 1)
    with pytest.raises(StepError, match="died again and again"):
        together(toy_home, what="die")
    assert 2 <= sum(rank == 1 for rank, _ in starts(toy_home)) <= 3


def test_a_rank_whose_agent_ended_before_it_began_ends_too(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", "liuyi.train.rank", str(tmp_path), "1"], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_signal_that_ended_the_ranks_ends_the_step_too(toy_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a step ignores SIGINT, its agent does not."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupted(folder: Path, params: ParallelParams) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise SignalException("interrupted", signal.SIGINT)

    monkeypatch.setattr(launch, "_run_agent", interrupted)
    try:
        with pytest.raises(StepError, match="the ranks were ended by SIGINT"):
            together(toy_home)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_no_rank_and_no_file_outlives_its_run(
    toy_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    scratch, path = tmp_path / "scratch", tmp_path / "recipe.yaml"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    step = {"step": "toy.together", "processes": 2, "what": "wait", "diary": str(toy_home.path / "diary")}
    path.write_text(json.dumps({"recipe": "waiting", "steps": {"sum": step}}))
    attached = start_run(toy_home, RecipeSource(path.name, path, tmp_path))
    wait_for(lambda: len(starts(toy_home)) == 2)
    if how == "cancelled":
        assert cancel_run(toy_home, attached.run_id, wait_s=240).status == "cancelled"
    else:
        os.kill(int(attached.run().worker.split(":")[1]), signal.SIGKILL)
    wait_for(lambda: are_gone([pid for _, pid in starts(toy_home)]))
    assert len(starts(toy_home)) == 2
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_two_machines_meet_lose_a_rank_and_meet_again(toy_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    """Each machine is an elastic agent of its own; the second is started by the command that the log prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    joining = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    joining += ["--rdzv-backend", "c10d", "--rdzv-endpoint", rendezvous, "--rdzv-id", rendezvous]
    joining += ["--max-restarts", "1000", "-m", "liuyi.train.rank"]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(joining, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as other:
        made = together(toy_home, nodes=2, rendezvous=rendezvous, what="lose")
        words, _ = other.communicate(timeout=240)
    assert other.returncode == 0, words.decode()
    assert made.file("sum.txt").read_text() == "1.0"
    assert sorted(rank for rank, _ in starts(toy_home)) == [0, 0, 1, 1]
    printed = re.search(r"on each of the other machines run: (.*)", capfd.readouterr().out)
    assert printed is not None
    assert set(joining[3:]) <= set(printed[1].split())


def test_a_machine_without_an_order_says_what_it_looked_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_HOME", str(home.path))
    with pytest.raises(LiuyiError, match="no step of this home meets others at 'one:29500'"):
        find_order("one:29500")
    assert not (home.work_root / FOLDER).exists()
