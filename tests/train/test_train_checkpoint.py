"""Checkpoints: written by one layout of processes and read by another, kept and dropped, and what their files hold."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_runs import Run, train
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from liuyi.core.digest import sha256_file
from liuyi.core.errors import DataError, OutOfDisk, StepError
from liuyi.train import checkpoint
from liuyi.train.checkpoint import Checkpoints
from liuyi.train.retention import Name, Retention
from liuyi.train.shards import Piece, share_out
from liuyi.train.snapshot import Snapshot
from liuyi.train.stored import Stored
from liuyi.train.tensor_file import DTYPES, write_tensors
from liuyi.train.world import Layout, World, join
from ranks import run_ranks

LAYOUTS = [Layout(), Layout(tensor=2), Layout(shard=2, tensor=2)]


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_files_are_those_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    """Read by the library itself; the digest is that of the bytes on the disk."""
    values = {
        "matrix": (torch.arange(15).reshape(3, 5) % 2).to(dtype),
        "count": torch.tensor(7),
        "none": torch.empty(0, 4, dtype=dtype),
        "名": torch.tensor([True]),
    }
    digest = write_tensors(values, tmp_path / "x.safetensors")
    assert digest == sha256_file(tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert set(read) == set(values)
    for name, value in values.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape)
        assert read[name].reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()


@given(st.data())
def test_boxes_meet_where_their_values_do(data: st.DataObject) -> None:
    """Against arrays that are filled and compared value by value."""
    whole = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    boxes = []
    for _ in range(2):
        offset = tuple(data.draw(st.integers(0, size - 1)) for size in whole)
        shape = tuple(data.draw(st.integers(1, size - at)) for size, at in zip(whole, offset, strict=True))
        boxes.append(Piece(whole, offset, shape))
    numbers = np.arange(np.prod(whole)).reshape(whole)
    parts = [numbers[tuple(slice(a, a + n) for a, n in zip(b.offset, b.shape, strict=True))] for b in boxes]
    met = boxes[0].overlap(boxes[1])
    common = set(parts[0].flat) & set(parts[1].flat)
    assert (met is not None) == bool(common)
    if met:
        assert set(parts[0][met[0]].flat) == common
        np.testing.assert_array_equal(parts[0][met[0]], parts[1][met[1]])


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)), min_size=1, max_size=4))
def test_every_part_is_written_once_by_one_that_holds_it(held: list[dict[str, int]]) -> None:
    parts = [{name: (Piece((8,), (2 * at,), (2,)), 8) for name, at in one.items()} for one in held]
    written = share_out(parts)
    assert all(names <= set(one) for names, one in zip(written, held, strict=True))
    told = [(name, held[rank][name]) for rank, names in enumerate(written) for name in names]
    assert sorted(told) == sorted({part for one in held for part in one.items()})


def test_what_all_hold_is_shared_evenly() -> None:
    everything = {f"w{number}": (Piece.all_of((4, number + 1)), 16 * (number + 1)) for number in range(16)}
    written = share_out([everything] * 4)
    loads = [sum(everything[name][1] for name in names) for names in written]
    assert sum(loads) == sum(size for _, size in everything.values())
    assert max(loads) - min(loads) <= 16 * 16


def values() -> dict[str, Tensor]:
    """Tensors that two and four do not divide, and others; a few are whole on every process."""
    torch.manual_seed(3)
    return {
        "rows": torch.randn(7, 6),
        "columns": torch.randn(6, 5),
        "narrow": torch.randn(1, 3).to(torch.bfloat16),
        "codes": torch.randint(0, 255, (8, 4), dtype=torch.uint8),
        "norm": torch.randn(5),
        "step": torch.tensor(12.0),
    }


def laid_out(world: World) -> dict[str, Tensor]:
    """`rows` and others cut over the shards, `columns` over the tensor ranks, the rest whole."""
    tensors = values()
    if world.mesh is None:
        return tensors
    mesh = world.mesh["shard", "tensor"]
    for name in ("rows", "narrow", "codes"):
        tensors[name] = distribute_tensor(tensors[name], mesh, [Shard(0), Replicate()])
    tensors["columns"] = distribute_tensor(tensors["columns"], mesh, [Replicate(), Shard(1)])
    return tensors


def save_values(folder: Path, layout: Layout) -> list[str]:
    """Save the values under a layout; the names that this process wrote."""
    world = join(layout) if layout.size > 1 else World()
    with Checkpoints(folder, world=world) as checkpoints:
        checkpoints.save(Snapshot(3, {"model": laid_out(world)}, {"tokens": 5}, {"rank": world.rank}))
    (path,) = folder.iterdir()
    return sorted(load_file(path / f"tensors-{world.rank}.safetensors"))


def load_values(folder: Path, layout: Layout) -> tuple[int, bool, int, list[str]]:
    """What a process reads: step, whether the layout is the same, whose own state; and what differs from the values."""
    world = join(layout) if layout.size > 1 else World()
    with Checkpoints(folder, world=world) as checkpoints:
        found = checkpoints.load()
    assert found is not None
    assert found.state == {"tokens": 5}
    like = laid_out(world)
    read = dict(found.group("model", like.get))
    assert set(read) == set(like)
    wrong = []
    for name, tensor in read.items():
        assert isinstance(tensor, DTensor) == isinstance(like[name], DTensor)
        mine, expected = (t.to_local() if isinstance(t, DTensor) else t for t in (tensor, like[name]))
        if mine.dtype != expected.dtype or not torch.equal(mine, expected):
            wrong.append(name)
    return found.step, found.same_layout, found.own["rank"], wrong


def under(layout: Layout, function: Any, folder: Path) -> list[Any]:
    return run_ranks(layout.size, function, folder, layout) if layout.size > 1 else [function(folder, layout)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "written", [Layout(replicate=2), Layout(shard=2, tensor=2)], ids=lambda layout: "x".join(map(str, layout.sizes))
)
def test_any_layout_reads_what_any_other_wrote(tmp_path: Path, written: Layout) -> None:
    names = under(written, save_values, tmp_path)
    assert sorted({name for one in names for name in one}) == sorted(f"model/{name}" for name in values())
    copies = [name for one in names for name in one if name in ("model/norm", "model/step")]
    assert len(copies) == 2, "what all have is written once"
    for read in LAYOUTS:
        for rank, result in enumerate(under(read, load_values, tmp_path)):
            assert result == (3, read == written, rank if read == written else 0, [])


def test_two_processes_write_and_one_reads(tmp_path: Path) -> None:
    names = under(Layout(shard=2), save_values, tmp_path)
    assert all("model/rows" in one for one in names)
    assert load_values(tmp_path, Layout()) == (3, False, 0, [])
    (path,) = tmp_path.iterdir()
    (path / "tensors-1.safetensors").write_bytes(b"")
    assert Checkpoints(tmp_path).load() is None


def half_read(tmp_path: Path, parts: dict[str, Any]) -> Stored:
    Checkpoints(tmp_path)
    folder = tmp_path / "000001-step000000003"
    folder.mkdir()
    write_tensors({"model/w": torch.ones(2, 3)}, folder / "tensors-0.safetensors")
    state = {"step": 3, "writers": 1, "layout": {}, "pieces": parts, "state": {}, "own": {}}
    (folder / "state-0.json").write_text(json.dumps(state))
    return Stored(folder)


def test_a_part_that_nobody_wrote_is_an_error(tmp_path: Path) -> None:
    stored = half_read(tmp_path, {"model/w": {"whole": [4, 3], "offset": [0, 0], "shape": [2, 3]}})
    with pytest.raises(StepError, match="parts of 'model/w' are not in the checkpoint"):
        dict(stored.group("model"))


def fail_on_one(folder: Path, layout: Layout) -> list[str]:
    """The second process cannot write its first two checkpoints: what each process meets, and what is left."""
    world = join(layout)
    met: list[str] = []
    write = checkpoint.write_tensors
    with Checkpoints(folder, world=world) as checkpoints:
        for step in range(3):
            if world.rank == 1 and step < 2:
                checkpoint.write_tensors = refuse
            checkpoints.save(Snapshot(step, {"model": laid_out(world)}, {}))
            try:
                checkpoints.wait()
            except (OSError, StepError) as error:
                met.append(type(error).__name__)
            checkpoint.write_tensors = write
    world.barrier()
    return met + sorted(path.name for path in folder.iterdir())


def refuse(*args: object) -> str:
    raise OSError("the test says so")


def test_what_one_process_meets_all_of_them_raise(tmp_path: Path) -> None:
    first, second = run_ranks(2, fail_on_one, tmp_path, Layout(shard=2))
    assert first == ["StepError", "StepError", "000003-step000000002"]
    assert second == ["OSError", "OSError", "000003-step000000002"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "optimiser"),
    [
        (Layout(), Layout(shard=2), "muon"),
        (Layout(shard=2, tensor=2), Layout(replicate=2), "muon"),
        (Layout(replicate=2), Layout(tensor=2), "adamw"),
    ],
    ids=str,
)
def test_a_run_goes_on_under_another_layout(tmp_path: Path, before: Layout, after: Layout, optimiser: str) -> None:
    """To the curve and weights of a run that was never divided."""
    run = Run(before, optimiser, steps=8, micro_rows=4, shape="qwen3", checkpoint_every_s=0.0)
    alone = train(tmp_path / "alone", run.alone)
    folder = tmp_path / "moved"
    started(run, folder)
    for path in (folder / "work" / "checkpoints").iterdir():
        if int(path.name.split("-step")[1]) > 4:
            shutil.rmtree(path)
    ranks = started(replace(run, layout=after), folder)
    assert "resumed at step 4 of 8" in ranks[0].told
    np.testing.assert_allclose(ranks[0].curve, alone.curve, rtol=2e-4)
    for name, weight in alone.weights.items():
        np.testing.assert_allclose(ranks[0].weights[name], weight, rtol=2e-4, atol=5e-5, err_msg=name)


def started(run: Run, folder: Path) -> list[Any]:
    return run_ranks(run.layout.size, train, folder, run) if run.layout.size > 1 else [train(folder, run)]


def test_names_are_read_as_they_are_written() -> None:
    for name in (Name(3, 500), Name(1_234_567, 12_345_678_901)):
        assert Name.parse(str(name)) == name
    assert Name.parse("tmp-000003-step000000500") is None


def test_the_newest_milestones_and_anchors_stay() -> None:
    names = [Name(serial, step) for serial, step in enumerate([0, 10, 17, 20, 20, 28, 30, 31])]
    steps = {name.step for name in Retention(2).kept(names)}
    assert steps == {30, 31}
    assert {name.step for name in Retention(1).kept(names, anchors=[19, 25])} == {17, 20, 31}
    policy = Retention(1, every_steps=10)
    assert policy.milestones(names) == [Name(0, 0), Name(1, 10), Name(4, 20), Name(6, 30)]
    assert policy.kept(names) == {*policy.milestones(names), Name(7, 31)}


class LongAway:
    """An address from which nothing has come before the processes have met three times."""

    def __init__(self, met: threading.Event) -> None:
        self.met, self.fetched = met, False

    def fetch(self, folder: Path) -> None:
        self.fetched = self.met.wait(60)

    def close(self, *, failed: bool) -> None: ...


def meet_while_one_fetches(folder: Path) -> bool:
    checkpoint.LOOK_S = 0.05
    world, meetings, often = join(Layout(replicate=2)), count(1), threading.Event()
    once = world.any

    def meet(flag: bool) -> bool:
        if next(meetings) == 3:
            often.set()
        return once(flag)

    address = LongAway(often)
    checkpoints = Checkpoints(folder, world=world, remote=address)  # type: ignore[arg-type]
    world.any = meet  # type: ignore[method-assign]
    with checkpoints:
        return address.fetched == world.leads


def test_processes_meet_while_the_first_one_fetches(tmp_path: Path) -> None:
    """No collective waits for the end of it, which would be longer than a collective may last."""
    assert run_ranks(2, meet_while_one_fetches, tmp_path) == [True, True]


@pytest.mark.parametrize("fails", [True, False])
def test_what_ends_a_run_is_told_and_its_copies_are_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Though the write that was under way fails too."""

    class Address:
        failed: bool | None = None

        def fetch(self, folder: Path) -> None: ...

        def close(self, *, failed: bool) -> None:
            self.failed = failed

    def full(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    address = Address()
    checkpoints = Checkpoints(tmp_path, remote=address)  # type: ignore[arg-type]

    def run() -> None:
        with checkpoints:
            checkpoints.save(Snapshot(0, {"model": {"w": torch.ones(2)}}, {}))
            if fails:
                raise DataError("batch 3 has no token to learn from")

    with pytest.raises(DataError if fails else OutOfDisk):
        run()
    assert address.failed is fails


def test_what_is_held_stays(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        held = checkpoints.hold(Snapshot(1, {"model": weights, "optimiser": {}}, {"tokens": 5}))
    weights["w"].fill_(-1)
    assert {name: values.tolist() for name, values in held.group("model")} == {"w": [1.0] * 3}
    assert (held.step, held.state) == (1, {"tokens": 5})


def test_what_is_held_is_not_put_where_a_write_still_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, go_on = {"w": torch.zeros(3)}, threading.Event()
    write = checkpoint.write_tensors

    def slowly(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
        go_on.wait()
        return write(tensors, path)

    monkeypatch.setattr("liuyi.train.checkpoint.write_tensors", slowly)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Snapshot(0, {"model": weights}, {}))
        weights["w"].fill_(1)
        held = checkpoints.hold(Snapshot(1, {"model": weights}, {}))
        go_on.set()
        checkpoints.wait()
        assert dict(held.group("model"))["w"].tolist() == [1.0] * 3
        stored = checkpoints.load()
        assert stored is not None
        assert dict(stored.group("model"))["w"].tolist() == [0.0] * 3


def test_copies_go_once_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what training does to the weights meanwhile is in the next checkpoint, not in this one."""
    weights, copies, write = {"w": torch.zeros(3)}, list[weakref.ref[torch.Tensor]](), checkpoint.write_tensors

    def watched(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
        copies.extend(map(weakref.ref, tensors.values()))
        return write(tensors, path)

    monkeypatch.setattr("liuyi.train.checkpoint.write_tensors", watched)
    with Checkpoints(tmp_path, retention=Retention(9)) as checkpoints:
        for step in range(3):
            weights["w"].fill_(step)
            checkpoints.save(Snapshot(step, {"model": weights}, {}))
            weights["w"].fill_(-1)
            checkpoints.wait()
            assert len(copies) == step + 1
            assert all(copy() is None for copy in copies)
    for step, path in enumerate(sorted(tmp_path.iterdir())):
        assert dict(Stored(path).group("model"))["w"].tolist() == [step] * 3
