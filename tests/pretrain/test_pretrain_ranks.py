"""Pretraining by several processes: the same model as one makes, whatever happens to one of them."""

from __future__ import annotations

import json
import shutil
import time
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
from liuyi.core.recipe import RecipeSource
from liuyi.core.runner.launch import start_run
from liuyi.train.loop import CHECKPOINTS, LOG_FILE

STEPS = 16
RUN: dict[str, Any] = {
    **TINY,
    "hidden_size": 32,
    "token_budget": 256 * STEPS,
    "checkpoint_every_s": 0,
    "keep_checkpoints": 100,
}
LAYOUTS = ("shard", "context", "copies")


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
def test_ranks_meet_every_fault_and_give_the_same_model(home: Home, tmp_path: Path) -> None:
    """One is killed, one hangs, of one a bit flips: the run goes on by itself, and its artifact has the same digest."""
    given = {port: f"artifact:{artifact.digest}" for port, artifact in inputs(home).items()}
    made = []
    for faults in ("nan:1@5", "nan:1@5,slow:1@3,kill:1@6,hang:1@9,flip:1@12"):
        path = tmp_path / f"recipe{len(made)}.yaml"
        step = {"step": "pretrain.train", **given, **RUN, "processes": 2, "hang_timeout_s": 15, "inject": faults}
        path.write_text(json.dumps({"recipe": "faults", "steps": {"fit": step}}))
        attached = start_run(home, RecipeSource(path.name, path, tmp_path))
        deadline = time.monotonic() + 300
        while attached.is_active():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)
        ended = attached.run()
        assert ended.status == "done", ended.error
        (fitted,) = home.ledger.steps(ended.id)
        execution = home.ledger.execution(fitted.key)
        assert execution is not None
        made.append(home.store.open(execution.outputs["checkpoint"]))
        events = (home.run_dir(ended.id) / "events.jsonl").read_text()
        log = (home.run_dir(ended.id) / "fit.log").read_text()
        assert events.count("all of them start again") == faults.count("kill") + faults.count("hang")
        assert events.count("silent corruption") == faults.count("flip")
        if "hang" in faults:
            # Either notices: the one that hangs, and the one that waits for it.
            assert "step 9: nothing has moved" in log + events
            stacks = [line.split(":")[0] for line in log.splitlines() if "most recent call first" in line]
            assert {"rank 0", "rank 1"} <= set(stacks)
    whole, broken = made
    names = sorted(path.name for path in whole.path.iterdir())
    assert [name for name in names if whole.file(name).read_bytes() != broken.file(name).read_bytes()] == []
    assert whole.digest == broken.digest
    assert [row["step"] for row in rows(whole) if "skipped" in row] == [5]
