"""The loop: accumulation, exact resume, guards, checkpoints that are damaged, disks that are full."""

from __future__ import annotations

import errno
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from drill import digest, printed, small_run, start
from torch import nn
from train_support import Killed, KilledAt, Listener, random_documents, tiny_model, write_tokens

from liuyi.core.errors import DataError, OutOfDisk, StepError
from liuyi.model.decoder import Decoder
from liuyi.train import checkpoint
from liuyi.train.batches import IGNORE, ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.guards import Guard, GuardConfig
from liuyi.train.lm import CausalLM, choose_compute_dtype
from liuyi.train.log import LOG_FILE
from liuyi.train.world import World
from waiting import wait_for


def finish(folder: Path, moments: list[int], **run: object) -> tuple[Decoder, str]:
    """Run to the end although killed after so many steps each time; the model and its log."""
    for moment in moments:
        with pytest.raises(Killed):
            small_run(folder, listener=KilledAt(moment), **run)  # type: ignore[arg-type]
    model, _, _ = small_run(folder, **run)  # type: ignore[arg-type]
    return model, (folder / "work" / LOG_FILE).read_text()


def test_the_model_learns(tmp_path: Path) -> None:
    """Four out of five tokens follow from the one before: on new documents the loss must come near that."""
    write_tokens(tmp_path, random_documents(1500))
    model, result, _ = small_run(tmp_path, steps=120, batch_rows=8, micro_rows=8, every_s=100)
    floor = -0.8 * math.log(0.8) - 0.2 * math.log(0.2 / 62)
    fresh = TokenRows(TokenStream(write_tokens(tmp_path / "fresh", random_documents(100, seed=1))), 32)
    loss = CausalLM()(model, fresh.read(np.arange(len(fresh))))
    assert floor < loss.total.item() / loss.count < floor + 0.8
    assert result.loss == pytest.approx(loss.total.item() / loss.count, abs=0.3)
    rows = [json.loads(line) for line in (tmp_path / "work" / LOG_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(120))
    assert set(rows[0]) == {"step", "batch", "loss", "lr", "grad_norm"}


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_accumulation_does_not_change_the_curve(tmp_path: Path, micro_rows: int) -> None:
    """8 x 1 rows, and parts that differ in their number of targets, train as 1 x 8."""
    losses = []
    for name, micro in (("whole", 8), ("parts", micro_rows)):
        folder = tmp_path / name
        small_run(folder, steps=20, batch_rows=8, micro_rows=micro, every_s=100)
        rows = (folder / "work" / LOG_FILE).read_text().splitlines()
        losses.append([(json.loads(row)["loss"], json.loads(row)["grad_norm"]) for row in rows])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_gradient_is_that_of_the_mean_over_all_targets(tmp_path: Path) -> None:
    """Against autograd on the plain formula over the whole batch."""
    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(9))), 32)
    batches = ShuffledBatches(rows, batch_rows=4, seed=5)
    model, reference = tiny_model(), tiny_model()
    (batch,) = batches(0)
    hidden = reference(batch.tokens, positions=batch.positions, segments=batch.segments)
    nn.functional.cross_entropy(
        reference.logits(hidden).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE
    ).backward()
    norm = nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None])
    small_run(tmp_path, steps=1, batch_rows=4, micro_rows=1, model=model)
    row = json.loads((tmp_path / "work" / LOG_FILE).read_text())
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("poisoned", [(), (12, 13, 14)])
def test_killed_runs_end_in_the_same_bits(tmp_path: Path, optimiser: str, poisoned: tuple[int, ...]) -> None:
    """With accumulation, and with a rollback on the way; the log is the same to the byte too."""
    run = {"steps": 36, "optimiser": optimiser, "poisoned": poisoned}
    whole, log = finish(tmp_path / "whole", [], every_s=1000.0, **run)
    broken, broken_log = finish(tmp_path / "broken", [1, 3, 9, 5, 7], **run)
    assert digest(broken) == digest(whole)
    assert broken_log == log


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first, _, _ = small_run(tmp_path, steps=10)
    second, result, poison = small_run(tmp_path, steps=10, model=tiny_model(seed=9))
    assert digest(first) == digest(second)
    assert (result.steps, poison.seen) == (10, [])


def test_weights_are_prepared_once(tmp_path: Path) -> None:
    """By the run that starts, not by those that go on; what it prepared is in the first checkpoint."""
    expected, _, _ = small_run(tmp_path / "whole", steps=8, model=tiny_model(seed=7))
    prepared: list[int] = []
    model = tiny_model()

    def prepare(model: Decoder) -> None:
        prepared.append(1)
        model.load_state_dict(tiny_model(seed=7).state_dict())

    with pytest.raises(Killed):
        small_run(tmp_path / "broken", steps=8, listener=KilledAt(1), model=model, prepare=lambda: prepare(model))
    fresh = tiny_model()
    small_run(tmp_path / "broken", steps=8, model=fresh, prepare=lambda: prepare(fresh))
    assert digest(fresh) == digest(expected)
    assert prepared == [1]


def test_checkpoints_do_not_touch_the_weights(tmp_path: Path) -> None:
    often, _, _ = small_run(tmp_path / "often", steps=12, every_s=0)
    seldom, _, _ = small_run(tmp_path / "seldom", steps=12, every_s=1000)
    assert digest(often) == digest(seldom)


@pytest.fixture(scope="module")
def killed_at_12(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 20 steps that was killed, to be copied, and the digest of the one that nobody disturbed."""
    folder = tmp_path_factory.mktemp("killed")
    whole, _, _ = small_run(folder / "whole", steps=20)
    with pytest.raises(Killed):
        small_run(folder / "broken", steps=20, listener=KilledAt(12))
    return folder / "broken", digest(whole)


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("tensors-0.safetensors", "flip"),
        ("tensors-0.safetensors", "cut"),
        ("state-0.json", "flip"),
        ("state-0.json", "remove"),
        ("training.jsonl", "flip"),
        ("digests-0.json", "cut"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, killed_at_12: tuple[Path, str], file: str, how: str
) -> None:
    killed, expected = killed_at_12
    folder = tmp_path / "broken"
    shutil.copytree(killed, folder)
    newest = sorted((folder / "work" / "checkpoints").iterdir())[-1]
    data = bytearray((newest / file).read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    (newest / file).write_bytes(data if how == "flip" else data[: len(data) // 2])
    if how == "remove":
        (newest / file).unlink()
    listener = Listener()
    model, _, _ = small_run(folder, steps=20, listener=listener)
    assert digest(model) == expected
    assert any(newest.name in line and "damaged" in line for line in listener.logs)


def test_when_every_checkpoint_is_damaged_the_run_starts_anew(tmp_path: Path) -> None:
    expected, log = finish(tmp_path / "whole", [], steps=12)
    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        small_run(folder, steps=12, listener=KilledAt(6))
    for path in (folder / "work" / "checkpoints").iterdir():
        (path / "tensors-0.safetensors").write_bytes(b"")
    model, again = finish(folder, [], steps=12)
    assert (digest(model), again) == (digest(expected), log)


def test_few_checkpoints_stay(tmp_path: Path) -> None:
    small_run(tmp_path, steps=47)
    left = sorted(path.name.split("-step")[1] for path in (tmp_path / "work" / "checkpoints").iterdir())
    assert left == ["000000040", "000000046", "000000047"]


def test_what_is_half_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, steps=9, listener=KilledAt(4))
    half = tmp_path / "work" / "checkpoints" / "tmp-000099-step000000099"
    half.mkdir()
    (half / "tensors-0.safetensors").write_bytes(b"half")
    _, result, _ = small_run(tmp_path, steps=9)
    assert result.steps == 9
    assert not half.exists()


def test_full_disk_says_so_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        small_run(tmp_path, steps=9, listener=KilledAt(4))
    before = sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir())

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(OutOfDisk):
            small_run(tmp_path, steps=9)
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir()) == before
    model, _, _ = small_run(tmp_path, steps=9)
    expected, _, _ = small_run(tmp_path / "whole", steps=9)
    assert digest(model) == digest(expected)


def test_global_generators_are_restored(tmp_path: Path) -> None:
    """An objective that draws noise from each of them is replayed exactly."""

    class Noise(Listener):
        def __init__(self, die_at: int = 0) -> None:
            super().__init__()
            self.drawn: list[tuple[float, float, float]] = []
            self.die_at = die_at

        def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
            self.drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
            if len(self.drawn) == self.die_at:
                raise Killed

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seeded()
    whole = Noise()
    small_run(tmp_path / "whole", steps=12, listener=whole)
    seeded()
    first = Noise(die_at=7)
    with pytest.raises(Killed):
        small_run(tmp_path / "broken", steps=12, listener=first)
    second = Noise()
    random.seed(99)
    small_run(tmp_path / "broken", steps=12, listener=second)
    # The kill fell after step 7's draw and before its checkpoint: step 7 is done again from the state before it.
    assert first.drawn[:6] + second.drawn == whole.drawn


def test_a_bad_batch_is_skipped(tmp_path: Path) -> None:
    """The weights are those of a run in which that step changes nothing."""
    listener = Listener()
    model, result, _ = small_run(tmp_path, steps=12, poisoned=(5,), listener=listener)
    assert (result.skipped, result.jumps, result.steps) == (1, [], 12)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "work" / LOG_FILE).read_text().splitlines()]
    assert rows[5]["skipped"] == "non-finite"
    assert rows[5]["loss"] is None
    assert [row["step"] for row in rows if "skipped" not in row] == [step for step in range(12) if step != 5]
    assert "step 5: non-finite" in listener.logs[0]


def test_bad_batches_in_a_row_roll_back_and_are_passed_over(tmp_path: Path) -> None:
    """From step 20 on, batches come 5 later: those of steps 20 to 24 are gone, and nothing else is."""
    _, result, poison = small_run(tmp_path, steps=30, poisoned=(22, 23, 24), guard=GuardConfig(rollback_steps=5))
    assert [(jump.step, jump.batches, jump.reason) for jump in result.jumps] == [(20, 5, "non-finite")]
    assert result.skipped == 3
    rows = [json.loads(line) for line in (tmp_path / "work" / LOG_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(30))
    assert not any("skipped" in row for row in rows)
    assert poison.seen == [*range(25), *range(25, 35)]


def test_a_rollback_does_not_turn_speed_around(tmp_path: Path) -> None:
    """Though it goes back behind the step at which this process began."""

    seen: list[float] = []

    class Speeds(Listener):
        def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
            seen.append(shown["tok_s"])

    run = {"steps": 30, "poisoned": (22, 23, 24), "guard": GuardConfig(rollback_steps=5)}
    with pytest.raises(Killed):
        small_run(tmp_path, listener=KilledAt(23), **run)  # type: ignore[arg-type]
    _, result, _ = small_run(tmp_path, listener=Speeds(), **run)  # type: ignore[arg-type]
    assert [jump.step for jump in result.jumps] == [20]
    assert min(seen) >= 0
    assert max(seen) > 0


def test_the_state_after_a_rollback_is_that_of_a_run_without_the_bad_data(tmp_path: Path) -> None:
    """A run whose batches skip the window by themselves ends in the same bits."""

    class Jumped(ShuffledBatches):  # type: ignore[type-arg]
        def __call__(self, index: int) -> object:  # type: ignore[override]
            return super().__call__(index if index < 20 else index + 5)

    rolled, _, _ = small_run(tmp_path / "a", steps=30, poisoned=(22, 23, 24), guard=GuardConfig(rollback_steps=5))
    import drill

    original = drill.ShuffledBatches
    drill.ShuffledBatches = Jumped  # type: ignore[misc]
    try:
        plain, _, _ = small_run(tmp_path / "b", steps=30)
    finally:
        drill.ShuffledBatches = original  # type: ignore[misc]
    assert digest(rolled) == digest(plain)


def test_a_run_that_cannot_be_saved_fails(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="non-finite losses at step"):
        small_run(tmp_path, steps=60, poisoned=range(12, 500))


def test_a_spike_is_skipped_and_noise_is_not(tmp_path: Path) -> None:
    _, result, _ = small_run(tmp_path, steps=60, poisoned=(50,), factor=40.0, every_s=100)
    assert (result.skipped, result.jumps) == (1, [])
    guard = Guard(GuardConfig(spike_z=10))
    rng = np.random.default_rng(0)
    normal = [guard.judge(step, 3.0 + 0.2 * rng.standard_normal(), 1.0)[0] for step in range(2000)]
    assert set(normal) == {"step"}
    assert guard.judge(2000, 6.0, 1.0) == ("skip", "spike")
    assert guard.judge(2001, 3.0, math.inf) == ("skip", "non-finite")
    assert guard.judge(2002, 6.0, 1.0) == ("rollback", "spike")
    tuned = Guard(GuardConfig(spike_z=10))
    quiet = [tuned.judge(step, 0.01 + 0.001 * rng.standard_normal(), 1.0)[0] for step in range(100)]
    assert set(quiet) == {"step"}
    assert tuned.judge(100, 0.2, 1.0) == ("step", "")
    assert tuned.judge(101, 0.6, 1.0) == ("skip", "spike")


def test_rollbacks_go_to_multiples_and_not_before_the_first_step() -> None:
    guard = Guard(GuardConfig(rollback_steps=10, first_step=5))
    assert [guard.anchor(step) for step in (6, 12, 13, 23)] == [5, 5, 10, 20]
    assert guard.anchors(12) == [5, 10]
    for step in range(6, 60):
        assert set(guard.anchors(step + 1)) <= {*guard.anchors(step), step + 1}, "what is needed later has been kept"


def test_a_batch_without_a_target_is_an_error(tmp_path: Path) -> None:
    class Silent(CausalLM):
        pass

    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(5))), 32)
    batch = rows.read(np.arange(1))
    batch.targets.fill_(IGNORE)
    loss = CausalLM()(tiny_model(), batch)
    assert (loss.count, loss.total.item()) == (0, 0.0)
    import drill

    class Empty(ShuffledBatches):  # type: ignore[type-arg]
        def __call__(self, index: int) -> object:  # type: ignore[override]
            return [batch] if index == 3 else super().__call__(index)

    original = drill.ShuffledBatches
    drill.ShuffledBatches = Empty  # type: ignore[misc]
    try:
        with pytest.raises(DataError, match="batch 3 has no token to learn from"):
            small_run(tmp_path, steps=9)
    finally:
        drill.ShuffledBatches = original  # type: ignore[misc]


def test_the_compute_dtype_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liuyi.train import lm

    slow = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(lm, "_product_s", lambda matrix: slow[matrix.dtype])
    assert choose_compute_dtype("auto", tmp_path) == torch.bfloat16
    slow[torch.float32] = 0.1
    assert choose_compute_dtype("auto", tmp_path) == torch.bfloat16
    assert choose_compute_dtype("auto", tmp_path / "other") == torch.float32
    assert choose_compute_dtype("bf16", tmp_path / "other") == torch.bfloat16


def test_asking_a_gpu_does_not_decide_its_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modelled on an H100: a product takes 40 µs to ask for, at 50 and 800 TFLOP/s."""
    from liuyi.train import lm

    rates = {torch.float32: 50e12, torch.bfloat16: 800e12}
    monkeypatch.setattr(lm, "_product_s", lambda matrix: 40e-6 + 2 * len(matrix) ** 3 / rates[matrix.dtype])
    assert choose_compute_dtype("auto", tmp_path, World(device=torch.device("meta"))) == torch.bfloat16


def test_bf16_compute_learns_alike(tmp_path: Path) -> None:
    """float32 weights, bfloat16 products: the same loss within the products' rounding."""
    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(9))), 32)
    batch = rows.read(np.arange(4))
    model = tiny_model()
    full = CausalLM()(model, batch)
    half = CausalLM(torch.bfloat16)(model, batch)
    half.total.backward()
    assert half.total.item() == pytest.approx(full.total.item(), rel=5e-3)
    assert model.model.embed_tokens.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def kill_after(begin: Callable[[], BaseProcess], log: Path, steps: int, rest_s: float) -> bool:
    """Start, and kill it a moment after it has logged so many steps more; whether it was running still.

    Counted in steps, for how long they take is the machine's affair.
    """
    begun = log.stat().st_mtime_ns if log.exists() else 0
    process = begin()

    def wait_until(holds: Callable[[], bool]) -> None:
        wait_for(lambda: process.exitcode is not None or holds(), pause_s=0.001)

    wait_until(lambda: log.exists() and log.stat().st_mtime_ns != begun)
    wanted = log.read_bytes().count(b"\n") + steps
    wait_until(lambda: log.read_bytes().count(b"\n") >= wanted)
    time.sleep(rest_s)
    was_running = process.exitcode is None
    process.kill()
    process.join()
    return was_running


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_kill_drill(tmp_path: Path, optimiser: str) -> None:
    """Real processes, really killed, ten times: the weights are those of the run that nobody disturbed."""

    def run(folder: Path) -> str:
        process = start(folder, optimiser)
        process.join()
        assert process.exitcode == 0, printed(folder)
        return printed(folder)

    expected = run(tmp_path / "whole")
    log = tmp_path / "killed" / "work" / LOG_FILE
    begin, chance = partial(start, tmp_path / "killed", optimiser), random.Random(7)
    killed = [kill_after(begin, log, chance.randrange(12), chance.uniform(0.0, 0.01)) for _ in range(10)]
    assert sum(killed) >= 3
    assert run(tmp_path / "killed") == expected
