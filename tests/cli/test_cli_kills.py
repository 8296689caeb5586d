"""A real training, killed with `kill -9` again and again: the final checkpoint is the same to the byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from liuyi.cli.samples import write_texts
from liuyi.core.home import Home
from liuyi.core.records import Run
from liuyi.core.runner.launch import state
from waiting import wait_for

pytestmark = pytest.mark.slow

RECIPE = """\
recipe: drill
seed: 3
steps:
  docs: {step: data.files, path: texts}
  tokenizer: {step: data.tokenizer, texts: ["${docs.corpus}"], vocab_size: 512}
  tokens: {step: data.tokens, corpus: "${docs.corpus}", tokenizer: "${tokenizer.tokenizer}"}
  pretrain:
    step: pretrain.train
    tokens: ${tokens.tokens}
    tokenizer: ${tokenizer.tokenizer}
    hidden_size: 64
    num_hidden_layers: 2
    seq_len: 64
    batch_tokens: 512
    epochs: 12
    checkpoint_every_s: 0.2
    compute_dtype: fp32
"""
PROGRAM = [sys.executable, "-c", "from liuyi.cli.main import main; main()"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LIUYI_STORE_URL", "LIUYI_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    write_texts(tmp_path / "texts")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def start(home: Home, *args: str) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, "--home", str(home.path), *args]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def checkpoint(home: Home) -> str:
    """The digest of the checkpoint of the only run, which is done."""
    (run,) = home.ledger.runs()
    assert run.status == "done", run.error
    (step,) = [step for step in home.ledger.steps(run.id) if step.name == "pretrain"]
    execution = home.ledger.execution(step.key)
    assert execution is not None
    return execution.outputs["checkpoint"]


def is_training(home: Home) -> bool:
    runs = home.ledger.runs()
    if not runs or state(runs[0]) != "running" or step_process(worker_of(runs[0])) is None:
        return False
    return any(step.name == "pretrain" and step.status == "running" for step in home.ledger.steps(runs[0].id))


def is_done(home: Home) -> bool:
    return any(run.status == "done" for run in home.ledger.runs())


def worker_of(run: Run) -> int:
    return int(run.worker.split(":")[1])


def step_process(worker: int) -> int | None:
    """The pid of the step: the child of the worker's child."""
    (server,) = children(worker) or [None]
    found = children(server) if server else []
    return found[0] if found else None


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_training_killed_at_random_moments_ends_with_the_same_checkpoint(folder: Path) -> None:
    calm, storm = Home(folder / "calm"), Home(folder / "storm")
    assert start(calm, "run", str(folder)).wait() == 0

    chance = random.Random(7)
    command = start(storm, "run", str(folder))
    kills = 0
    for victim in ["step", "worker", "command"]:
        wait_for(lambda: is_training(storm) or is_done(storm))
        time.sleep(chance.uniform(0.3, 1.5))
        (run,) = storm.ledger.runs()
        if run.status == "done":
            break
        worker = worker_of(run)
        pid = {"step": step_process(worker), "worker": worker, "command": command.pid}[victim]
        if pid is None:
            continue
        os.kill(pid, signal.SIGKILL)
        kills += 1
        if victim == "step":  # its worker starts it again
            continue
        command.wait()
        if victim == "command":
            assert state(storm.ledger.run(run.id)) == "running"
        command = start(storm, "resume")
    assert kills >= 2
    assert command.wait() == 0
    assert checkpoint(storm) == checkpoint(calm)
