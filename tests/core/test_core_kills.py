"""Kill drills: `kill -9` of every process of a run at random moments; what comes out in the end is the same."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from liuyi.core.home import Home
from liuyi.core.recipe import RecipeSource
from liuyi.core.runner.keys import derived_seed
from liuyi.core.runner.launch import Attached, resume_run, start_run, state
from liuyi.core.step import get_step
from waiting import is_running, lines, wait_for

pytestmark = pytest.mark.slow

LINKS = 60
RECIPE = """\
recipe: drill
seed: 5
steps:
  number: {step: toy.number, value: 1}
  fit:
    step: toy.chain
    number: ${number.number}
    links: %d
    pause_s: 0.05
    diary: %s
"""


def expected() -> str:
    """What the chain gives, computed here."""
    value = str(derived_seed(5, get_step("toy.chain")))
    for _ in range(LINKS):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def begin(home: Home, diary: Path) -> Attached:
    path = home.path.parent / "recipe.yaml"
    path.write_text(RECIPE % (LINKS, diary))
    return start_run(home, RecipeSource("recipe.yaml", path, path.parent))


def wait_until_over(attached: Attached) -> None:
    wait_for(lambda: not attached.is_active())


def wait_until_running(attached: Attached) -> None:
    wait_for(lambda: attached.run().status == "running" or not attached.is_active())


def wait_until_started(diary: Path, times: int) -> None:
    wait_for(lambda: len(lines(diary, "start")) == times)


def wait_until_gone(*pids: int) -> None:
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def pids(diary: Path) -> tuple[int, int]:
    """The step process and the server that forked it, of the latest start."""
    _, step, server, *_ = lines(diary, "start")[-1].split()
    return int(step), int(server)


def value_made(home: Home, run_id: str) -> str:
    (step,) = [step for step in home.ledger.steps(run_id) if step.name == "fit"]
    execution = home.ledger.execution(step.key)
    assert execution is not None
    return home.store.open(execution.outputs["model"]).file("value.txt").read_text()


@pytest.mark.parametrize("victim", ["step", "server", "worker"])
def test_a_run_whose_processes_are_killed_is_resumed_to_the_same_result(
    victim: str, toy_home: Home, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    chance = random.Random(victim)
    attached = begin(toy_home, diary)
    for kill in range(1, 4):
        wait_until_started(diary, kill)
        time.sleep(chance.uniform(0.0, 0.6))
        step, server = pids(diary)
        worker = int(attached.run().worker.split(":")[1])
        os.kill({"step": step, "server": server, "worker": worker}[victim], signal.SIGKILL)
        wait_until_over(attached)
        wait_until_gone(step, server)
        ended = attached.run()
        assert state(ended) == ("lost" if victim == "worker" else "failed")
        if victim == "step":
            assert "(SIGKILL)" in ended.error
        attached = resume_run(toy_home, ended.id)
    wait_until_over(attached)
    ended = attached.run()
    assert ended.status == "done"
    assert value_made(toy_home, ended.id) == expected()
    assert sorted({int(line.split()[1]) for line in lines(diary, "link")}) == list(range(1, LINKS + 1))
    assert len(lines(diary, "link")) <= LINKS + 3
    assert toy_home.ledger.leases() == {}
    assert not list(toy_home.work_root.iterdir())


def test_a_run_goes_on_without_the_command_that_started_it(toy_home: Home, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    (tmp_path / "recipe.yaml").write_text(RECIPE % (LINKS, diary))
    command = [sys.executable, "-c", "from liuyi.cli.main import main; main()", "run", str(tmp_path)]
    cli = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lines(diary, "link"))
    cli.kill()
    cli.wait()
    (run,) = toy_home.ledger.runs()
    assert state(run) == "running"
    attached = resume_run(toy_home)
    assert attached.worker is None
    wait_until_over(attached)
    assert attached.run().status == "done"
    assert value_made(toy_home, run.id) == expected()
    assert len(lines(diary, "start")) == 1


def test_a_step_that_does_not_listen_is_killed(toy_home: Home, tmp_path: Path) -> None:
    from liuyi.core.runner.launch import cancel_run

    ready = tmp_path / "ready"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"recipe: x\nsteps:\n  deaf: {{step: toy.stubborn, ready: {ready}}}\n")
    attached = start_run(toy_home, RecipeSource("recipe.yaml", path, tmp_path))
    wait_for(ready.exists)
    assert cancel_run(toy_home, attached.run_id, wait_s=240).status == "cancelled"
    assert not is_running(int(ready.read_text()))


def test_killing_every_process_at_once_leaves_nothing_half_made(toy_home: Home, tmp_path: Path) -> None:
    """Kills come ever earlier and later around the moment of publishing; what is there afterwards is whole."""
    text = "recipe: x\nsteps:\n  a: {step: toy.number, value: 1}\n  b: {step: toy.number, value: 2}\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    chance = random.Random(1)
    attached = start_run(toy_home, RecipeSource("recipe.yaml", path, tmp_path))
    for _ in range(6):
        wait_until_running(attached)
        time.sleep(chance.uniform(0.0, 0.5))
        if attached.worker is not None:
            attached.worker.kill()
            attached.worker.wait()
        for digest in toy_home.store.digests():
            assert toy_home.store.verify(digest) == []
        if state(attached.run()) == "done":
            break
        attached = resume_run(toy_home, attached.run_id)
    wait_until_over(attached)
    assert attached.run().status == "done"
    assert {step.name: step.status for step in toy_home.ledger.steps(attached.run_id)}.keys() == {"a", "b"}
    assert len(list(toy_home.store.digests())) == 2


@pytest.mark.parametrize(
    ("deaths", "keeps", "how", "starts"),
    [(7, True, "killed", "8"), (7, True, "hangs", "8"), (3, False, "killed", "4"), (4, False, "killed", "")],
)
def test_a_step_that_can_go_on_is_started_again(
    deaths: int, keeps: bool, how: str, starts: str, toy_home: Home, tmp_path: Path
) -> None:
    """As often as it takes while it gets on, and three times in a row if it does not."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"recipe: x\nsteps:\n  fit: {{step: toy.phoenix, deaths: {deaths}, keeps: {str(keeps).lower()}, how: {how}}}\n"
    )
    attached = start_run(toy_home, RecipeSource("recipe.yaml", path, tmp_path))
    wait_until_over(attached)
    ended = attached.run()
    if not starts:
        assert (ended.status, "(SIGKILL)" in ended.error) == ("failed", True)
        return
    assert ended.status == "done"
    (execution,) = toy_home.ledger.executions()
    assert toy_home.store.open(execution.outputs["number"]).file("number.txt").read_text() == starts
