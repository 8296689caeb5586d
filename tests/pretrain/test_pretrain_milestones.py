"""Milestones of a run: branches that cool down from them, and recorded steps taken again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from pretrain_support import sentences, small_tokenizer, tokens_of
from safetensors.torch import load_file

import in_process
from liuyi.cli.main import cli
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, LedgerError, ModelError, StepError
from liuyi.core.home import Home
from liuyi.core.runner.process import DONE, StepOrder, run_step
from liuyi.core.step import get_step
from liuyi.train.log import read_log
from liuyi.train.loop import Trainer
from liuyi.train.milestones import last_milestone, milestone_steps
from liuyi.train.optim import Optimiser
from liuyi.train.replay import replay

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "seq_len": 32,
    "batch_tokens": 128,
    "init": "random",
    "compute_dtype": "fp32",
    "lr": 0.01,
    "optimiser": "muon",
}
BATCH = 128
Train = Callable[..., dict[str, Artifact]]


@pytest.fixture
def train(home: Home, tmp_path: Path) -> Train:
    torch.set_num_threads(1)
    tokenizer, artifact = small_tokenizer(home)
    inputs = {"tokens": tokens_of(home, tokenizer, sentences(80, 3), "d"), "tokenizer": artifact}

    def run(folder: str, extra: dict[str, Artifact] | None = None, **params: Any) -> dict[str, Artifact]:
        workdir = tmp_path / folder
        workdir.mkdir(exist_ok=True)
        given = {**SMALL, **params}
        if extra and "model" in extra:
            given = {key: value for key, value in given.items() if key not in ("hidden_size", "num_hidden_layers")}
        return in_process.run_step(home, workdir, "pretrain.train", {**inputs, **(extra or {})}, **given)

    return run


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("model.safetensors"))


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_branch_is_the_run_that_had_decayed_from_there(train: Train, optimiser: str) -> None:
    """To the bit, weights and log, with the moments of the optimiser and the place in the data."""
    stable = train(
        "stable",
        token_budget=16 * BATCH,
        schedule="constant",
        warmup=2 / 16,
        keep_every_steps=5,
        optimiser=optimiser,
    )
    assert milestone_steps(stable["milestones"].path) == [0, 5, 10, 15]
    extra = {"model": stable["checkpoint"], "milestones": stable["milestones"]}
    branch = train("branch", extra, branch_step=10, cooldown_steps=6, optimiser=optimiser)["checkpoint"]
    whole = train("whole", token_budget=16 * BATCH, schedule="wsd", warmup=2 / 16, decay=6 / 16, optimiser=optimiser)[
        "checkpoint"
    ]
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(branch)[name]), name
    assert branch.file("training.jsonl").read_bytes() == whole.file("training.jsonl").read_bytes()
    assert not torch.equal(*(next(iter(weights(a["checkpoint"]).values())) for a in (stable, {"checkpoint": whole})))


def test_a_branch_without_a_cooldown_goes_on(train: Train) -> None:
    half = train("half", token_budget=8 * BATCH, schedule="constant", warmup=0.0, keep_every_steps=8)
    extra = {"model": half["checkpoint"], "milestones": half["milestones"]}
    longer = train("longer", extra, token_budget=12 * BATCH, schedule="constant", warmup=0.0)["checkpoint"]
    whole = train("whole", token_budget=12 * BATCH, schedule="constant", warmup=0.0)["checkpoint"]
    assert longer.file("training.jsonl").read_bytes() == whole.file("training.jsonl").read_bytes()
    with pytest.raises(ModelError, match="the run would end before step 8"):
        train("shorter", extra, token_budget=8 * BATCH)


def test_a_branch_that_makes_no_sense_is_refused(train: Train) -> None:
    stable = train("stable", token_budget=12 * BATCH, schedule="wsd", decay=0.5, warmup=0.0, keep_every_steps=4)
    extra = {"model": stable["checkpoint"], "milestones": stable["milestones"]}
    with pytest.raises(DataError, match="no milestone of step 5"):
        train("a", extra, branch_step=5, cooldown_steps=2)
    with pytest.raises(ModelError, match=r"falls from the learning rate 0.01, and the step before the milestone had"):
        train("b", extra, branch_step=8, cooldown_steps=2)
    with pytest.raises(ModelError, match="are nothing for"):
        train("c", extra, branch_step=4, cooldown_steps=2, optimiser="adamw")
    with pytest.raises(ModelError, match="the milestone is of another model"):
        train("d", {"milestones": stable["milestones"]}, branch_step=4, cooldown_steps=2, hidden_size=64)
    with pytest.raises(ModelError, match="nothing to branch off from"):
        train("e", cooldown_steps=2)


def test_a_branch_rolls_back_to_where_it_began(train: Train) -> None:
    """What came before was another run's, by another schedule and perhaps on other tokens."""
    stable = train("stable", token_budget=6 * BATCH, schedule="constant", warmup=0.0, keep_every_steps=5)
    extra = {"model": stable["checkpoint"], "milestones": stable["milestones"]}
    branch = train("branch", extra, branch_step=5, cooldown_steps=4, inject="nan@5,nan@6,nan@7")["checkpoint"]
    rows = read_log(branch.path)
    assert [(row["step"], row["batch"]) for row in rows[5:]] == [(5, 8), (6, 9), (7, 10), (8, 11)]


class Stopped(BaseException):
    """What a kill looks like from inside."""


def test_a_branch_whose_checkpoints_are_lost_begins_from_the_milestone(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never from nothing, with the weights that the run ended with."""
    stable = train("stable", token_budget=6 * BATCH, schedule="constant", warmup=0.0, keep_every_steps=5)
    extra = {"model": stable["checkpoint"], "milestones": stable["milestones"]}
    expected = train("whole", extra, cooldown_steps=2)["checkpoint"]

    def dying(self: Any) -> float:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take_step", dying)
        with pytest.raises(Stopped):
            train("branch", extra, cooldown_steps=2)
    for path in (tmp_path / "branch" / "checkpoints").glob("*/tensors-0.safetensors"):
        # Another file of that name, for the old one is the milestone's too.
        path.unlink()
        path.write_bytes(b"x")
    with pytest.raises(StepError, match="the checkpoints of this branch are damaged"):
        train("branch", extra, cooldown_steps=2)
    found = weights(train("branch", extra, cooldown_steps=2)["checkpoint"])
    for name, tensor in weights(expected).items():
        assert torch.equal(tensor, found[name]), name


def test_a_step_before_the_first_milestone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step000000006").mkdir()
    assert last_milestone(tmp_path, 8) == 6
    with pytest.raises(DataError, match="no milestone at or before step 5"):
        last_milestone(tmp_path, 5)
    with pytest.raises(DataError, match="there is no milestone") as error:
        last_milestone(tmp_path / "empty")
    assert "no multiple of its keep_every_steps" in error.value.hint


def test_milestones_are_the_same_however_often_a_run_is_killed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"token_budget": 12 * BATCH, "keep_every_steps": 4, "checkpoint_every_s": 0}
    expected = train("whole", **params)["milestones"]
    take = Trainer._take_step
    with monkeypatch.context() as patch:
        for at in (3, 7, 10):

            def dying(self: Any, at: int = at) -> float:
                if self.step == at:
                    raise Stopped
                return take(self)

            patch.setattr(Trainer, "_take_step", dying)
            with pytest.raises(Stopped):
                train("killed", **params)
    found = train("killed", **params)["milestones"]
    assert found.digest == expected.digest


@pytest.fixture
def record(home: Home, train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Enters a finished training with milestones in the ledger, as step `base` of a run."""
    monkeypatch.setattr("liuyi.train.replay.derived_seed", lambda seed, step: in_process.SEED)

    def entered(**params: Any) -> None:
        given = {"token_budget": 14 * BATCH, "keep_every_steps": 5, "inject": "nan@7,kill@1000", **params}
        in_process.record(home, "base", "pretrain.train", {**SMALL, **given}, train("recorded", **given))

    return entered


def test_recorded_steps_come_out_the_same(home: Home, record: Callable[..., None]) -> None:
    """Across a skipped step too; the log's own rows are what is compared."""
    record()
    for wanted, first in ((8, 5), (10, 10), (13, 10), (3, 0)):
        found = replay(home, "last", "base", wanted)
        assert [row["step"] for row in found.again] == list(range(first, wanted + 1))
        assert found.exactly
        assert found.again == found.recorded
        assert found.parts_at is None
    with pytest.raises(DataError, match="has no step 14"):
        replay(home, "last", "base", 14)
    with pytest.raises(LedgerError, match="no step 'bas'"):
        replay(home, "last", "bas", 3)


def test_steps_behind_a_rollback_come_out_the_same(home: Home, record: Callable[..., None]) -> None:
    """From a milestone before it: the bad batches are met again, and passed over."""
    record(inject="nan@7,nan@8,nan@9", keep_every_steps=20)
    found = replay(home, "last", "base", 4)
    assert found.parts_at is None
    assert found.recorded[-1]["batch"] > 4, "the run went on behind what it had passed over"


def test_without_milestones_there_is_no_replay(home: Home, record: Callable[..., None]) -> None:
    record(keep_every_steps=0)
    with pytest.raises(LedgerError, match="has no milestones to replay from") as error:
        replay(home, "last", "base", 3)
    assert "keep_every_steps" in error.value.hint


def test_a_step_that_was_wrong_is_named(
    home: Home, record: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step 7 that was too long leaves weights of which every later loss tells; a milestone behind it
    is as wrong, and from there the steps agree again."""
    taken, step = [0], Optimiser.step

    def wrong(self: Optimiser, factor: float, *rest: Any) -> Any:
        taken[0] += 1
        return step(self, factor * (1.001 if taken[0] == 8 else 1.0), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "step", wrong)
        record(inject="")
    assert replay(home, "last", "base", 6).parts_at is None
    assert replay(home, "last", "base", 9).parts_at == 8
    assert replay(home, "last", "base", 13).parts_at is None


def work(home: Home, run: str, name: str, given: dict[str, Artifact], **params: Any) -> dict[str, Artifact]:
    """Do a step of a run as a step process does, with its own seed, and enter it in the ledger; its outputs."""
    step = get_step("pretrain.train")
    home.ledger.put_step(run, name, step=step.name, key=name, status="done", position=0)
    order = StepOrder(
        home=home.path,
        run_id=run,
        name=name,
        step=step.name,
        key=name,
        params=step.params(**params).model_dump(mode="json"),
        inputs=tuple((port, artifact.digest) for port, artifact in given.items()),
        seed=3,
        device="cpu",
        log=home.run_dir(run) / "log.txt",
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status, error = run_step(order)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert status == DONE, error
    execution = home.ledger.execution(name)
    assert execution is not None
    return {port: home.store.open(digest) for port, digest in execution.outputs.items()}


def test_replay_from_the_command_line(home: Home, train: Train) -> None:
    """A run with its own seed, and a branch of it, which begins at a step of its own."""
    made = train("tokens", token_budget=BATCH)["checkpoint"]
    given = {ref.name: home.store.open(ref.digest) for ref in made.manifest.inputs}
    run = home.ledger.create_run(recipe="branches", text="", source="", overrides=(), seed=3)
    more = {"schedule": "constant", "warmup": 0.0}
    stable = work(home, run, "stable", given, **SMALL, token_budget=12 * BATCH, keep_every_steps=5, **more)
    cut = {key: value for key, value in SMALL.items() if key not in ("hidden_size", "num_hidden_layers")}
    given |= {"model": stable["checkpoint"], "milestones": stable["milestones"]}
    work(home, run, "short", given, **cut, cooldown_steps=3, keep_every_steps=6)

    def invoked(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--home", str(home.path), "replay", "last", *arguments])

    for step, number in (("stable", 11), ("stable", 4), ("short", 12)):
        told = invoked(step, str(number), "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.output)["parts_at"] is None
    told = invoked("short", "11")
    assert told.exit_code == 1
    assert "no milestone at or before step 11" in told.output
