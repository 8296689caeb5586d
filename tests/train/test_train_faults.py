"""Faults of machine and data, brought about on purpose: what is met must not be seen in the weights."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drill import Poison, digest, printed, small_run, start
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from train_support import Listener, tiny_model

from liuyi.core.digest import sha256_file
from liuyi.core.errors import DataError, OutOfDisk, StepError
from liuyi.core.step import START_AGAIN
from liuyi.model.decoder import Decoder
from liuyi.train import checkpoint, saving, watchdog
from liuyi.train.batches import Batch
from liuyi.train.checkpoint import Checkpoints
from liuyi.train.corruption import checksum
from liuyi.train.guards import GuardConfig
from liuyi.train.inject import Fault, parse_faults
from liuyi.train.interfaces import LoopConfig, Loss
from liuyi.train.log import LOG_FILE
from liuyi.train.watchdog import Watchdog

STEPS = 24


def faulty(faults: str, **more: object) -> LoopConfig:
    return LoopConfig(STEPS, checkpoint_every_s=0.0, inject=faults, **more)  # type: ignore[arg-type]


def test_faults_are_written_as_kind_and_step() -> None:
    assert parse_faults(" nan@120, kill@300 ,flip@9") == (Fault("nan", 120), Fault("kill", 300), Fault("flip", 9))
    assert parse_faults("") == ()
    for wrong in ("nan", "nan@", "melt@3", "nan@-1", "kill@3@4"):
        with pytest.raises(DataError, match=re.escape(wrong)):
            parse_faults(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_a_checksum_does_not_depend_on_where_a_tensor_lies(dtype: torch.dtype) -> None:
    """Nor fail for one that begins inside a word."""
    whole = torch.arange(33).to(dtype)
    assert checksum([whole[1:33]]) == checksum([whole[1:33].clone()])


@given(st.integers(1, 41), st.data())
def test_any_flipped_bit_changes_the_checksum(size: int, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    one, other = torch.arange(size).to(dtype), torch.arange(7).float()
    before = checksum([one, other])
    at = data.draw(st.integers(0, size * one.element_size() - 1))
    one.view(torch.uint8)[at] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum([one, other]) != before


@pytest.mark.slow
def test_a_flipped_bit_is_found_before_it_spreads(tmp_path: Path) -> None:
    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    listener = Listener()
    model, result, _ = small_run(tmp_path / "flipped", steps=STEPS, listener=listener, config=faulty("flip@7,flip@15"))
    assert digest(model) == digest(expected)
    assert result.recoveries == 2
    assert sum("silent corruption" in line for line in listener.logs) == 2


@pytest.mark.slow
def test_a_bit_that_flips_as_a_run_rolls_back_costs_one_checkpoint(tmp_path: Path) -> None:
    """There are two of that step then, and the one before it is sound."""
    bad, guard = (12, 13, 14), GuardConfig(rollback_steps=10)
    expected, plain, _ = small_run(tmp_path / "whole", steps=STEPS, poisoned=bad, guard=guard)
    listener = Listener()
    config = faulty("flip@14", guard=guard)
    model, result, _ = small_run(tmp_path / "flipped", steps=STEPS, poisoned=bad, config=config, listener=listener)
    assert any("corrupt before it was written" in line for line in listener.logs)
    assert digest(model) == digest(expected)
    assert (result.jumps, result.recoveries) == (plain.jumps, 1)


def test_an_injected_batch_is_skipped_like_a_bad_one(tmp_path: Path) -> None:
    expected, _, _ = small_run(tmp_path / "poisoned", steps=STEPS, poisoned=(5,))
    model, result, _ = small_run(tmp_path / "injected", steps=STEPS, config=faulty("nan@5"))
    assert (digest(model), result.skipped) == (digest(expected), 1)


def test_a_checkpoint_of_flipped_weights_is_passed_over(tmp_path: Path) -> None:
    """Its files match their digests: the bit flipped before they were written."""
    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    folder = tmp_path / "flipped"
    small_run(folder, steps=STEPS, config=LoopConfig(STEPS // 2, checkpoint_every_s=0.0))
    newest = sorted((folder / "work" / "checkpoints").iterdir())[-1]
    tensors = load_file(newest / "tensors-0.safetensors")
    next(iter(tensors.values())).view(torch.int32).view(-1)[3] ^= 1
    save_file(tensors, newest / "tensors-0.safetensors")
    digests = json.loads((newest / "digests-0.json").read_text())
    digests["tensors-0.safetensors"] = sha256_file(newest / "tensors-0.safetensors")
    (newest / "digests-0.json").write_text(json.dumps(digests))
    listener = Listener()
    model, _, _ = small_run(folder, steps=STEPS, config=faulty(""), listener=listener)
    assert any("corrupt before it was written" in line for line in listener.logs)
    assert digest(model) == digest(expected)


def test_steps_that_are_taken_twice_change_nothing(tmp_path: Path) -> None:
    bad = (12, 13, 14)
    guard = GuardConfig(rollback_steps=10)
    expected, plain, _ = small_run(tmp_path / "whole", steps=STEPS, poisoned=bad, guard=guard)
    twice = faulty("", verify_every=1, guard=guard)
    model, result, _ = small_run(tmp_path / "twice", steps=STEPS, poisoned=bad, config=twice)
    assert digest(model) == digest(expected)
    assert (result.recoveries, result.jumps) == (0, plain.jumps)
    assert (tmp_path / "whole/work" / LOG_FILE).read_bytes() == (tmp_path / "twice/work" / LOG_FILE).read_bytes()


class Halving:
    """A monitor that remembers the steps it saw, and after step `at` halves the weights and ends the run."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, [0]

    def after_step(self, model: Decoder, step: int) -> str:
        self.seen.append(step)
        if step != self.at:
            return ""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return "half is enough"

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def test_weights_that_a_monitor_puts_in_place_are_sound(tmp_path: Path) -> None:
    """What it leaves behind is what the last checkpoint holds, and nothing is done again."""
    stopped, result, _ = small_run(tmp_path, steps=STEPS, monitor=Halving(10))
    assert (result.steps, result.stopped) == (10, "half is enough")
    listener = Listener()
    again, _, seen = small_run(tmp_path, steps=STEPS, monitor=Halving(10), listener=listener)
    assert digest(again) == digest(stopped)
    assert (listener.logs, seen.seen) == ([f"resumed at step 10 of {STEPS}"], [])


@pytest.mark.parametrize("every_s", [0.0, 1e-6])
def test_a_step_that_is_taken_twice_is_told_once(tmp_path: Path, every_s: float) -> None:
    listener, monitor = Listener(), Halving(STEPS + 1)
    config = LoopConfig(STEPS, checkpoint_every_s=every_s, verify_every=2)
    small_run(tmp_path, steps=STEPS, poisoned=(5,), config=config, listener=listener, monitor=monitor)
    assert monitor.seen == list(range(STEPS + 1))
    assert sum("step 5: non-finite" in line for line in listener.logs) == 1
    told = [index for name, _, index in listener.metrics if name == "grad_norm"]
    assert told == [step for step in range(STEPS) if step != 5]


def test_a_run_that_learnt_nothing_has_no_loss(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="nothing was learnt: every one of 2 steps was skipped, non-finite"):
        small_run(tmp_path, steps=2, poisoned=(0, 1))


def test_the_watchdog_waits_for_each_thing_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step, look and checkpoint have the whole time each, and are named when they take longer."""
    said: list[str] = []
    monkeypatch.setattr(Watchdog, "beat", lambda self, doing: said.append(doing))
    small_run(tmp_path, steps=1, micro_rows=None, monitor=Halving(9))
    named = [
        "reading a checkpoint",
        "the checkpoint of step 0",
        "step 0",
        "the look after step 1",
        "the checkpoint of step 1",
    ]
    assert list(dict.fromkeys(said)) == named


@pytest.mark.parametrize("log", ["raise OSError('full')", "time.sleep(60)"])
def test_the_watchdog_ends_the_process_though_nothing_can_be_written(log: str) -> None:
    code = (
        "import time\n"
        "from liuyi.train import watchdog\n"
        "watchdog.TELL_S = 0.2\n"
        f"def log(message): {log}\n"
        "with watchdog.Watchdog(0.2, log): time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50, check=False)
    assert ended.returncode == START_AGAIN


def test_the_watchdog_s_time_begins_with_its_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done between the making of it and its watch, such as fetching checkpoints, is not its affair."""
    clock = [100.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    dog = Watchdog(10.0, pytest.fail)
    clock[0] += 3600.0
    with dog:
        assert dog.still_s < 10.0
        clock[0] += 5.0
        assert dog.still_s == 5.0


def test_a_machine_that_computes_differently_each_time_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Poison.loss

    def drifting(self: Poison, model: Decoder, batch: Batch) -> Loss:
        loss = sound(self, model, batch)
        return Loss(loss.total * (1 + 1e-6 * len(self.seen)), loss.count, loss.metrics)

    monkeypatch.setattr(Poison, "loss", drifting)
    with pytest.raises(StepError, match="step 4 came out differently the second time"):
        small_run(tmp_path, config=faulty("", verify_every=5))


@pytest.mark.slow
def test_killed_and_hanging_processes_end_in_the_same_bits(tmp_path: Path) -> None:
    def run(folder: str, faults: str) -> tuple[int | None, str]:
        process = start(tmp_path / folder, "muon", faults)
        process.join(120)
        return process.exitcode, printed(tmp_path / folder)

    status, expected = run("whole", "")
    assert status == 0
    ended = [run("broken", "kill@30,hang@60,flip@75,kill@76") for _ in range(4)]
    assert [status for status, _ in ended] == [-signal.SIGKILL, START_AGAIN, -signal.SIGKILL, 0]
    assert "before_step" in ended[1][1], "the stack shows where it hung"
    assert ended[-1][1] == expected


def test_a_slow_disk_delays_checkpoints_and_not_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    write = checkpoint.write_tensors

    def slowly(*args: object) -> str:
        time.sleep(0.2)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write_tensors", slowly)
    listener = Listener()
    model, _, _ = small_run(tmp_path / "slow", steps=STEPS, every_s=1e-6, listener=listener)
    assert digest(model) == digest(expected)
    assert any("still being written" in line for line in listener.logs)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Training goes on without a checkpoint or two; when three fail in a row the run ends and says so."""
    write, calls = checkpoint.write_tensors, [0]

    def full(*args: object) -> str:
        calls[0] += 1
        if 10 < calls[0] <= 10 + failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    listener = Listener()
    if failures == 3:
        with pytest.raises(OutOfDisk):
            small_run(tmp_path, steps=STEPS, every_s=0, listener=listener)
    else:
        model, _, _ = small_run(tmp_path, steps=STEPS, every_s=0, listener=listener)
        assert sum("without a checkpoint" in line for line in listener.logs) == failures
        assert digest(model) != digest(tiny_model())


@pytest.mark.parametrize("faults", ["flip@13", "nan@12,nan@13,nan@14"])
def test_going_back_does_not_fail_over_a_checkpoint_that_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str
) -> None:
    """The write under way fails while corruption or bad data sends the run back to the checkpoint before."""
    write = checkpoint.write_tensors
    guard = GuardConfig(rollback_steps=10)

    def full(tensors: dict[str, torch.Tensor], path: Path) -> str:
        if re.search(r"step0*1[1-9]$", path.parent.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(tensors, path)

    expected, _, _ = small_run(
        tmp_path / "whole", steps=STEPS, config=faulty(faults.replace("flip@13", ""), guard=guard)
    )
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    # One falls due before each step, however slowly the one before is written.
    monkeypatch.setattr(checkpoint.Checkpoints, "busy", lambda self: False)
    monkeypatch.setattr(saving, "MAX_FAILED_SAVES", 100)
    listener = Listener()
    config = LoopConfig(STEPS, checkpoint_every_s=1e-6, inject=faults, guard=guard)
    model, _, _ = small_run(tmp_path / "full", steps=STEPS, config=config, listener=listener)
    assert any("without a checkpoint" in line for line in listener.logs)
    assert digest(model) == digest(expected)


def test_a_disk_that_fails_for_a_while_is_met_like_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = checkpoint.write_tensors, [0]

    def failing(*args: object) -> str:
        calls[0] += 1
        if calls[0] in (10, 11):
            raise OSError(errno.EIO, "Input/output error")
        return write(*args)  # type: ignore[arg-type]

    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    monkeypatch.setattr(checkpoint, "write_tensors", failing)
    listener = Listener()
    model, _, _ = small_run(tmp_path / "failing", steps=STEPS, every_s=0, listener=listener)
    assert sum("without a checkpoint" in line for line in listener.logs) == 2
    assert digest(model) == digest(expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_without_room_for_the_log_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / LOG_FILE).symlink_to("/dev/full")
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **more: None)
    with pytest.raises(OutOfDisk, match="no space left while writing what training measures"):
        small_run(tmp_path, steps=STEPS)
