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

import pytest
import torch
from drill import Poison, digest, small_run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from train_support import Listener, tiny_model

from liuyi.core.digest import sha256_file
from liuyi.core.errors import DataError, OutOfDisk, StepError
from liuyi.core.step import START_AGAIN
from liuyi.model.decoder import Decoder
from liuyi.train import checkpoint
from liuyi.train.batches import Batch
from liuyi.train.corruption import checksum
from liuyi.train.guards import GuardConfig
from liuyi.train.inject import Fault, parse_faults
from liuyi.train.loop import LOG_FILE, LoopConfig, Loss

STEPS = 24
DRILL = Path(__file__).with_name("drill.py")


def faulty(faults: str, **more: object) -> LoopConfig:
    return LoopConfig(STEPS, checkpoint_every_s=0.0, inject=faults, **more)  # type: ignore[arg-type]


def test_faults_are_written_as_kind_and_step() -> None:
    assert parse_faults(" nan@120, kill@300 ,flip@9") == (Fault("nan", 120), Fault("kill", 300), Fault("flip", 9))
    assert parse_faults("") == ()
    for wrong in ("nan", "nan@", "melt@3", "nan@-1", "kill@3@4"):
        with pytest.raises(DataError, match=re.escape(wrong)):
            parse_faults(wrong)


@given(st.integers(1, 41), st.data())
def test_any_flipped_bit_changes_the_checksum(size: int, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    one, other = torch.arange(size).to(dtype), torch.arange(7).float()
    before = checksum([one, other])
    at = data.draw(st.integers(0, size * one.element_size() - 1))
    one.view(torch.uint8)[at] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum([one, other]) != before


def test_a_flipped_bit_is_found_before_it_spreads(tmp_path: Path) -> None:
    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    listener = Listener()
    model, result, _ = small_run(tmp_path / "flipped", steps=STEPS, listener=listener, config=faulty("flip@7,flip@15"))
    assert digest(model) == digest(expected)
    assert result.recoveries == 2
    assert sum("silent corruption" in line for line in listener.logs) == 2


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
    tensors = load_file(newest / "model.safetensors")
    next(iter(tensors.values())).view(torch.int32).view(-1)[3] ^= 1
    save_file(tensors, newest / "model.safetensors")
    digests = json.loads((newest / "digests.json").read_text())
    digests["model.safetensors"] = sha256_file(newest / "model.safetensors")
    (newest / "digests.json").write_text(json.dumps(digests))
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
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_killed_and_hanging_processes_end_in_the_same_bits(tmp_path: Path, optimiser: str) -> None:
    def run(folder: str, faults: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DRILL), str(tmp_path / folder), optimiser, faults]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    expected = run("whole", "")
    ended = [run("broken", "kill@30,hang@60,flip@75,kill@76") for _ in range(4)]
    assert [one.returncode for one in ended] == [-signal.SIGKILL, START_AGAIN, -signal.SIGKILL, 0]
    assert "before_step" in ended[1].stderr, "the stack shows where it hung"
    assert expected.stdout
    assert ended[-1].stdout == expected.stdout


def test_a_slow_disk_delays_checkpoints_and_not_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _, _ = small_run(tmp_path / "whole", steps=STEPS)
    write = checkpoint.save_file

    def slowly(*args: object) -> None:
        time.sleep(0.2)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_file", slowly)
    listener = Listener()
    model, _, _ = small_run(tmp_path / "slow", steps=STEPS, every_s=1e-6, listener=listener)
    assert digest(model) == digest(expected)
    assert any("still being written" in line for line in listener.logs)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Training goes on without a checkpoint or two; when three fail in a row the run ends and says so."""
    write, calls = checkpoint.save_file, [0]

    def full(*args: object) -> None:
        calls[0] += 1
        if 10 < calls[0] <= 10 + failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_file", full)
    listener = Listener()
    if failures == 3:
        with pytest.raises(OutOfDisk):
            small_run(tmp_path, steps=STEPS, every_s=0, listener=listener)
    else:
        model, _, _ = small_run(tmp_path, steps=STEPS, every_s=0, listener=listener)
        assert sum("could not be written" in line for line in listener.logs) == failures
        assert digest(model) != digest(tiny_model())
