"""Pretraining by several processes: the same model as one makes, whatever happens to one of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_support import TINY, sentences, small_tokenizer, tokens_of
from safetensors.torch import load_file

import in_process
from in_ranks import fork_ranks
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import CHECKPOINTS

STEPS = 16
RUN: dict[str, Any] = {
    **TINY,
    "hidden_size": 128,
    "token_budget": 256 * STEPS,
    "checkpoint_every_s": 0,
    "keep_checkpoints": 100,
}
LAYOUTS = ("copies", *(pytest.param(way, marks=pytest.mark.slow) for way in ("shard", "context", "tensor")))


def inputs(home: Home) -> dict[str, Artifact]:
    tokenizer, published = small_tokenizer(home)
    return {"tokens": tokens_of(home, tokenizer, sentences(120, 3), "d"), "tokenizer": published}


def rows(made: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.file(LOG_FILE).read_text().splitlines()]


def assert_same_model(made: Artifact, expected: Artifact) -> None:
    """Weights and losses agree to rounding."""
    ours, theirs = (load_file(model.file("model.safetensors")) for model in (made, expected))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], rtol=1e-3, atol=2e-4, msg=lambda text, name=name: name + text)
    assert [row["batch"] for row in rows(made)] == [row["batch"] for row in rows(expected)]
    assert [row["loss"] for row in rows(made)] == pytest.approx([row["loss"] for row in rows(expected)], rel=1e-4)


@pytest.mark.parametrize("divided", LAYOUTS)
def test_two_processes_go_on_with_what_one_began(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, divided: str
) -> None:
    fork_ranks(monkeypatch)
    given, workdir = inputs(home), tmp_path / "work"
    workdir.mkdir()
    expected = in_process.run_step(home, workdir, "pretrain.train", given, **RUN)["checkpoint"]
    later = [path for path in (workdir / CHECKPOINTS).iterdir() if int(path.name.split("-step")[1]) > STEPS // 2]
    assert len(later) == STEPS // 2
    for path in later:
        shutil.rmtree(path)
    layout = {} if divided == "copies" else {divided: 2}
    made = in_process.run_step(home, workdir, "pretrain.train", given, **RUN, processes=2, **layout)["checkpoint"]
    assert_same_model(made, expected)
    assert "resumed at step 8 of 16" in (workdir / "ranks" / "events.jsonl").read_text()


def test_rows_that_cannot_be_shared_are_an_error_before_the_first_step(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model's size says how many there are, only the step can know."""
    fork_ranks(monkeypatch)
    params = {**RUN, "batch_tokens": None, "processes": 3}
    with pytest.raises(DataError, match="cannot be shared evenly by 3"):
        in_process.run_step(home, tmp_path, "pretrain.train", inputs(home), **params)
    assert not (tmp_path / LOG_FILE).exists()


@pytest.mark.slow
def test_ranks_meet_every_fault_and_give_the_same_model(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is killed, one hangs, of one a bit flips: the run goes on by itself, and its artifact has the same digest."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given, made = inputs(home), []
    for faults in ("nan:1@5", "nan:1@5,slow:1@3,kill:1@6,hang:1@9,flip:1@12"):
        workdir = tmp_path / f"{len(made)}"
        workdir.mkdir()
        with monkeypatch.context() as patch:
            if "kill" not in faults:
                fork_ranks(patch)
            params = {**RUN, "processes": 2, "hang_timeout_s": 6, "inject": faults}
            made.append(in_process.run_step(home, workdir, "pretrain.train", given, **params)["checkpoint"])
    events = (workdir / "events.jsonl").read_text()
    assert events.count("all of them start again") == faults.count("kill") + faults.count("hang")
    assert events.count("silent corruption") == faults.count("flip")
    log = "".join(capfd.readouterr())
    assert "rank 1: step 9: nothing has moved" in log
    stacks = [line.split(":")[0] for line in log.splitlines() if "most recent call first" in line]
    assert {"rank 0", "rank 1"} <= set(stacks)
    whole, broken = made
    names = sorted(path.name for path in whole.path.iterdir())
    assert [name for name in names if whole.file(name).read_bytes() != broken.file(name).read_bytes()] == []
    assert whole.digest == broken.digest
    assert [row["step"] for row in rows(whole) if "skipped" in row] == [5]
