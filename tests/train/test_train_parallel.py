"""Data-parallel training: any layout gives the curve of one process, and all ranks decide alike."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_runs import Run, Trained, a_model, train, whole_weights

from liuyi.core.errors import LiuyiError
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gather import gather_model
from liuyi.train.parallel.shard import loading_dtype
from liuyi.train.world import Layout, World, join
from ranks import RankFailed, run_ranks


def together(folder: Path, run: Run) -> list[Trained]:
    """What each rank made of a run."""
    trained: list[Trained] = run_ranks(run.layout.size, train, folder, run)
    return trained


def demand_same(trained: Trained, alone: Trained, *, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    """The same curve and the same weights, to rounding."""
    np.testing.assert_allclose(trained.curve, alone.curve, rtol=rtol)
    for name, weight in alone.weights.items():
        np.testing.assert_allclose(trained.weights[name], weight, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(shard=2)])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_two_processes_train_as_one(tmp_path: Path, layout: Layout, optimiser: str) -> None:
    """With accumulation, and rows of which some have no target."""
    run = Run(layout, optimiser)
    alone = train(tmp_path / "alone", run.alone)
    first, second = together(tmp_path / "together", run)
    demand_same(first, alone)
    assert first.result.tokens == alone.result.tokens
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(second.weights[name], weight)
    assert second.told == []
    assert second.metrics == []


def test_four_processes_train_as_one(tmp_path: Path) -> None:
    """Two copies of two shards each, with whole shards of matrices that 2 does not divide evenly among them."""
    run = Run(Layout(replicate=2, shard=2), "muon", steps=4)
    demand_same(together(tmp_path / "together", run)[3], train(tmp_path / "alone", run.alone))


def brought_together(run: Run) -> dict[str, Any]:
    """The weights of a layer while it computes."""
    world = join(run.layout)
    model = a_model(run)
    parallelize(model, world, compute_dtype=torch.bfloat16)
    layer = model.model.layers[0]
    seen: dict[str, Any] = {}

    def look(*_: Any) -> None:
        for name, parameter in layer.named_parameters():
            seen[name] = parameter.dtype, parameter.detach().float().numpy().copy()

    layer.mlp.register_forward_pre_hook(look)
    model(torch.arange(8)[None], compute_dtype=torch.bfloat16)
    return seen


def test_matrices_travel_in_the_dtype_they_are_multiplied_in(tmp_path: Path) -> None:
    """And nothing is rounded that one process does not round: norms stay float32."""
    run = Run(Layout(shard=2), compute_dtype=torch.bfloat16, steps=3)
    _, seen = run_ranks(2, brought_together, run)
    for name, weight in a_model(run).model.layers[0].named_parameters():
        expected = weight.detach() if weight.ndim == 1 else weight.detach().bfloat16()
        assert seen[name][0] == expected.dtype
        np.testing.assert_array_equal(seen[name][1], expected.float().numpy())
    first, _ = together(tmp_path / "together", run)
    np.testing.assert_allclose(first.curve, train(tmp_path / "alone", run.alone).curve, rtol=1e-3)


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(shard=2)])
def test_adapters(tmp_path: Path, layout: Layout) -> None:
    """Frozen weights are cut up too, and keep their bits."""
    run = Run(layout, lora=True, steps=4)
    first, _ = together(tmp_path / "together", run)
    demand_same(first, train(tmp_path / "alone", run.alone))
    for name, parameter in a_model(run).named_parameters():
        if not parameter.requires_grad:
            np.testing.assert_array_equal(first.weights[name], parameter.numpy())


def test_a_moving_average_is_cut_up_as_the_weights_are(tmp_path: Path) -> None:
    run = Run(Layout(shard=2), ema=0.9, steps=4)
    alone = train(tmp_path / "alone", run.alone)
    demand_same(together(tmp_path / "together", run)[0], alone)
    plain = train(tmp_path / "plain", replace(run.alone, ema=0.0))
    assert any(np.abs(weight - alone.weights[name]).max() > 1e-3 for name, weight in plain.weights.items())


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(shard=2)])
def test_experts_that_one_rank_has_no_token_for(tmp_path: Path, layout: Layout) -> None:
    """One micro-batch of one row has tokens for few of eight experts; its rank still has a gradient for all."""
    run = Run(layout, experts=True, steps=3, batch_rows=2)
    demand_same(together(tmp_path / "together", run)[0], train(tmp_path / "alone", run.alone), atol=1e-4)


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(shard=2)])
def test_a_bad_loss_on_one_rank_is_skipped_by_all(tmp_path: Path, layout: Layout) -> None:
    run = Run(layout, steps=5, poisoned=(1, 2))
    first, second = together(tmp_path / "together", run)
    assert [row.get("skipped") for row in first.log] == [None, None, "non-finite", None, None]
    assert (first.result.skipped, second.result.skipped) == (1, 1)
    for name, weight in first.weights.items():
        assert np.isfinite(weight).all()
        np.testing.assert_array_equal(second.weights[name], weight)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "optimiser"), [(Layout(replicate=2), "adamw"), (Layout(shard=2), "muon")])
def test_corruption_on_one_rank_sends_all_back(tmp_path: Path, layout: Layout, optimiser: str) -> None:
    """The run ends in the bits of one that met none, from a checkpoint that both have read their parts of."""
    run = Run(layout, optimiser, steps=6, faults="flip:1@2", checkpoint_every_s=0.0)
    first, second = together(tmp_path / "flipped", run)
    undisturbed, _ = together(tmp_path / "undisturbed", replace(run, faults=""))
    assert (first.result.recoveries, second.result.recoveries) == (1, 1)
    assert any("changed by themselves before step 3 (rank 1)" in line for line in first.told)
    assert first.curve == undisturbed.curve
    for name, weight in undisturbed.weights.items():
        np.testing.assert_array_equal(first.weights[name], weight)


def drift(folder: Path, layout: Layout) -> Trained:
    """Rank 1 takes a step that the other copy does not, and notes its own checksum as if all were well."""
    from liuyi.train import loop

    honest = loop.Trainer._guarded_step

    def dishonest(trainer: Any) -> float:
        loss = honest(trainer)
        if trainer.world.rank == 1 and trainer.step == 2 and not trainer.recoveries:
            weight = next(iter(trainer.optimiser.parameters.values()))
            weight.data.view(-1)[0] += 1
            trainer.checksum = loop.checksum(trainer.optimiser.tensors())
        return loss

    loop.Trainer._guarded_step = dishonest  # type: ignore[method-assign]
    return train(folder, Run(layout, steps=5, verify_every=4, checkpoint_every_s=0.0))


@pytest.mark.parametrize("layout", [Layout(replicate=2), Layout(context=2)])
def test_copies_that_come_apart_are_found(tmp_path: Path, layout: Layout) -> None:
    """Each copy is sound by itself: only comparing them shows that one of them took another step."""
    first, _ = run_ranks(2, drift, tmp_path, layout)
    assert any("copies of the weights have come apart by step 4 (rank 1)" in line for line in first.told)


def fill_the_disk_of_one(folder: Path) -> str:
    from liuyi.train import checkpoint

    def full(*args: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    if os.environ["RANK"] == "1":
        checkpoint.write_tensors = full
    with pytest.raises(LiuyiError) as error:
        train(folder, Run(Layout(replicate=2), steps=2))
    return error.value.message


def test_all_are_told_why_one_cannot_write(tmp_path: Path) -> None:
    """Whichever of them the user hears first."""
    first, second = run_ranks(2, fill_the_disk_of_one, tmp_path)
    assert first.startswith("rank 1 could not write its part of a checkpoint: OSError")
    assert first.endswith("No space left on device")
    assert second == "no space is left for a checkpoint"


def count_sums(folder: Path, layout: Layout, micro_rows: int) -> dict[str, int]:
    """How many messages of gradients one step takes."""
    import torch.distributed as dist

    calls = {"all_reduce": 0, "reduce_scatter_single": 0}
    for name in calls:
        inner = getattr(dist, name)

        def counted(*args: Any, name: str = name, inner: Any = inner, **options: Any) -> Any:
            calls[name] += 1
            return inner(*args, **options)

        setattr(dist, name, counted)
    train(folder, Run(layout, steps=1, batch_rows=8, micro_rows=micro_rows))
    return calls


@pytest.mark.parametrize(("layout", "scattered"), [(Layout(replicate=2), 0), (Layout(shard=2), 3)])
def test_accumulation_sums_once(tmp_path: Path, layout: Layout, scattered: int) -> None:
    """Copies send one bucket, shards one message for each of two layers and one for the rest, and one for the norms."""
    whole = run_ranks(2, count_sums, tmp_path / "whole", layout, 4)[0]
    parts = run_ranks(2, count_sums, tmp_path / "parts", layout, 1)[0]
    assert parts == whole
    assert whole["reduce_scatter_single"] == scattered


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="a batch of 3 rows cannot be shared evenly by 2 workers"):
        together(tmp_path, Run(Layout(replicate=2), batch_rows=3))


def save_and_compute(folder: Path, run: Run) -> tuple[Any, Any] | None:
    world = join(run.layout)
    model = a_model(run)
    parallelize(model, world, recompute="layer")
    gathered = gather_model(model, world)
    if not world.leads:
        assert gathered is None
        return None
    assert gathered is not None
    assert type(gathered) is Decoder
    assert gathered.model.layers[0]._forward_pre_hooks == {}
    tokens = torch.arange(20).view(2, 10)
    return gathered(tokens).detach().numpy(), whole_weights(gathered)


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_is_gathered_on_the_first_rank(tmp_path: Path, lora: bool) -> None:
    """Whole, plain, and able to compute by itself."""
    run = Run(Layout(shard=2), lora=lora)
    gathered, nothing = run_ranks(2, save_and_compute, tmp_path, run)
    assert nothing is None
    expected = a_model(run)
    np.testing.assert_array_equal(gathered[0], expected(torch.arange(20).view(2, 10)).detach().numpy())
    for name, weight in expected.state_dict().items():
        np.testing.assert_array_equal(gathered[1][name], weight.numpy())


def read_and_cut(folder: Path) -> tuple[torch.dtype, set[torch.dtype], dict[str, Any]]:
    world = join(Layout(shard=2))
    model = load_model(folder, loading_dtype(folder, world))
    as_read = model.dtype
    parallelize(model, world)
    return as_read, {parameter.dtype for parameter in model.parameters()}, whole_weights(model)


def test_weights_become_float32_when_they_have_been_cut_up(tmp_path: Path) -> None:
    """So that processes of one machine share a mapped file, and hold their parts of it besides."""
    save_model(tmp_path, a_model(Run()).bfloat16())
    assert loading_dtype(tmp_path, World()) == torch.float32
    for as_read, dtypes, weights in run_ranks(2, read_and_cut, tmp_path):
        assert (as_read, dtypes) == (torch.bfloat16, {torch.float32})
        for name, weight in load_model(tmp_path).named_parameters():
            np.testing.assert_array_equal(weights[name], weight.detach().numpy())
