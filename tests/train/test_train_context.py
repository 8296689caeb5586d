"""Rows divided over ranks: what comes of them together is what one process makes of the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from parallel_models import SHAPES, Outcome, assert_same, divisible_model, outcome
from train_support import packed_batch

from liuyi.core.errors import ModelError
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.parallel.context import attend_across, cut, cut_rows
from liuyi.train.parallel.recompute import checkpoint_activations
from liuyi.train.world import Layout, World, join
from ranks import run_ranks

LENGTHS = (64, 41)
"""One that divides evenly, one that has to be padded."""


def in_parts(ranks: int) -> dict[tuple[str, int], Outcome]:
    """Loss and gradients of every shape and length, summed over the ranks."""
    world = join(Layout(context=ranks))
    results = {}
    for shape in SHAPES:
        model = divisible_model(shape)
        checkpoint_activations(model, "layer" if shape == "qwen3" else "none")
        attend_across(model, world)
        for seq in LENGTHS:
            (batch,) = cut_rows(lambda index, seq=seq: [packed_batch(2, seq, seed=index)], world)(7)
            total, grads = outcome(model, batch)
            for grad in grads.values():
                dist.all_reduce(grad)
            (loss,) = world.sum([total])
            results[shape, seq] = loss, {name: grad.double().numpy() for name, grad in grads.items()}
    return results


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_whole_rows(ranks: int) -> None:
    results = run_ranks(ranks, in_parts, ranks)
    for (shape, seq), found in results[0].items():
        assert_same(found, outcome(divisible_model(shape), packed_batch(2, seq, seed=7)))
    assert all(result[key][0] == results[0][key][0] for result in results for key in result)


def whole_rows_and_nothing_to_learn() -> tuple[bool, float]:
    world = join(Layout(context=2))
    model, alone, batch = divisible_model("qwen3"), divisible_model("qwen3"), packed_batch(2, 40)
    attend_across(model, world)
    whole = torch.equal(
        model(batch.tokens, segments=batch.segments), alone(batch.tokens, segments=batch.segments)
    ) and torch.equal(model(batch.tokens), alone(batch.tokens))
    # The targets are all on one rank; the other's part of the gradient goes through what it gave.
    targets = batch.targets.clone()
    targets[:, :35] = IGNORE
    part = cut(dataclasses.replace(batch, targets=targets), world.context_rank, 2)
    total, grads = outcome(model, part)
    own = float(grads["model.layers.0.self_attn.k_proj.weight"].abs().sum())
    assert (total == 0.0) == (world.context_rank == 1)
    return whole, own


def test_whole_rows_stay_whole_and_a_rank_without_targets_still_learns() -> None:
    results = run_ranks(2, whole_rows_and_nothing_to_learn)
    assert all(whole and own > 0 for whole, own in results)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seq", [12, 13])
def test_every_token_has_one_rank(ranks: int, seq: int) -> None:
    batch = packed_batch(3, seq)
    parts = [cut(batch, rank, ranks) for rank in range(ranks)]
    learnt = batch.targets != IGNORE
    fields = [f.name for f in dataclasses.fields(Batch) if f.name != "segments"]

    def rows_of(batch: Batch, learnt: torch.Tensor) -> list[tuple[int, ...]]:
        return sorted(zip(*(getattr(batch, name)[learnt].tolist() for name in fields), strict=True))

    found = [row for part in parts for row in rows_of(part, part.targets != IGNORE)]
    assert sorted(found) == rows_of(batch, learnt)
    for part in parts:
        assert torch.equal(part.segments[:, :seq], batch.segments)
        assert part.tokens.shape[1] * ranks == part.segments.shape[1]


def test_ranks_have_as_much_to_do() -> None:
    """Pairs of query and key below the diagonal, of rows of 64 tokens over 4 ranks."""
    at = torch.arange(64)[None]
    whole = Batch(tokens=at, targets=at, segments=torch.zeros_like(at), positions=at)
    work = [int((cut(whole, rank, 4).positions + 1).sum()) for rank in range(4)]
    assert len(set(work)) == 1
    assert sum(work) == 64 * 65 // 2


def dynamic_rope() -> str:
    model = divisible_model("llama")
    model.config = dataclasses.replace(model.config, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ModelError) as error:
        attend_across(model, join(Layout(context=2)))
    return error.value.message


def test_dynamic_rope_is_refused() -> None:
    assert run_ranks(2, dynamic_rope)[0] == "with dynamic RoPE scaling the rows cannot be divided over ranks"


def test_one_process_changes_nothing() -> None:
    model, batch = divisible_model("llama"), packed_batch(2, 16)
    attend_across(model, World())
    (same,) = cut_rows(lambda index: [batch], World())(0)
    assert same is batch
    assert np.isfinite(outcome(model, same)[0])
