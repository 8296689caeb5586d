"""Processes that train together: where each stands, and what they tell one another."""

from __future__ import annotations

import math
import os
from itertools import product

import pytest
import torch.distributed as dist

from liuyi.core.errors import StepError
from liuyi.train.world import DIMENSIONS, Layout, World, join
from ranks import RankFailed, run_ranks


def test_one_process_has_nobody_to_ask() -> None:
    world = World()
    assert (world.size, world.rank, world.data_rank, world.data_size, world.context_size) == (1, 0, 0, 1, 1)
    assert world.sum([1.5, 2.0]) == [1.5, 2.0]
    assert (world.any(True), world.any(False), world.gather(3.0)) == (True, False, [3.0])


@pytest.mark.parametrize("sizes", [(2, 2, 1, 1), (1, 2, 2, 3), (2, 1, 2, 2)])
def test_places_are_those_of_the_mesh(sizes: tuple[int, int, int, int]) -> None:
    """Against every rank's coordinates counted off one by one, the last dimension first."""
    layout = Layout(*sizes)
    for rank, (replicate, shard, context, tensor) in enumerate(product(*map(range, sizes))):
        world = World(layout, rank)
        assert world.data_rank == replicate * sizes[1] + shard
        assert (world.context_rank, world.tensor_rank) == (context, tensor)
    assert layout.size == math.prod(sizes)


def test_copies_are_what_the_other_dimensions_leave() -> None:
    assert Layout.of(8, shard=2, tensor=2) == Layout(replicate=2, shard=2, tensor=2)
    with pytest.raises(StepError, match="6 processes cannot"):
        Layout.of(6, shard=4)


def meet(layout: Layout) -> tuple[list[int], list[float], list[float], list[bool]]:
    world = join(layout)
    assert world.mesh is not None
    assert world.seen is not None
    assert world.seen.size() == layout.replicate * layout.shard * layout.context
    assert world.rank == dist.get_rank()
    places = [world.mesh.get_local_rank(name) for name in DIMENSIONS]
    sums = world.sum([0.1 * (world.rank + 1), float("nan") if world.rank == 1 else 1.0])
    return places, sums, world.gather(10.0 + world.rank), [world.any(world.rank == 1), world.any(False)]


def test_what_is_shared_is_the_same_everywhere() -> None:
    results = run_ranks(2, meet, Layout(shard=2))
    assert [result[0] for result in results] == [[0, 0, 0, 0], [0, 1, 0, 0]]
    for _, (total, poisoned), gathered, flags in results:
        assert total == 0.1 + 0.2
        assert math.isnan(poisoned)
        assert gathered == [10.0, 11.0]
        assert flags == [True, False]


def test_tensor_ranks_count_once() -> None:
    for places, sums, gathered, _ in run_ranks(2, meet, Layout(tensor=2)):
        assert places[:3] == [0, 0, 0]
        assert sums == [0.1, 1.0]
        assert gathered == [10.0, 11.0]


def wrong_number() -> str:
    with pytest.raises(StepError, match="2 processes were started, but replicate 3") as error:
        join(Layout(replicate=3))
    return error.value.message


def test_each_process_must_have_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StepError, match="has 1 GPUs, and process 1 of it would have none"):
        join(Layout(replicate=2))


def die_or_raise(how: str) -> None:
    world = join(Layout(replicate=2))
    if world.rank == 1:
        if how == "die":
            os._exit(3)
        raise ValueError("what went wrong")
    world.barrier()


def test_the_number_of_processes_must_fit() -> None:
    assert run_ranks(2, wrong_number)[0].endswith("asks for 3")


@pytest.mark.parametrize(("how", "said"), [("die", "rank . died|Connection"), ("raise", "what went wrong|Connection")])
def test_failures_of_ranks_are_shown(how: str, said: str) -> None:
    with pytest.raises(RankFailed, match=said):
        run_ranks(2, die_or_raise, how)
