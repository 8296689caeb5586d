"""Objectives other than the language model's, on weights that are cut up: they use the model in ways of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parallel_runs import whole
from torch import nn
from train_support import VOCAB, tiny_model

from liuyi.align.pairs import Pair, PairRows
from liuyi.align.preference import PairObjective
from liuyi.align.reward_model import BradleyTerry, RewardRows
from liuyi.model.reward import RewardModel
from liuyi.train.packing import Example
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gradients import gradient_norm, sum_gradients
from liuyi.train.world import Layout, World, join
from ranks import run_ranks


def pairs() -> PairRows:
    """Eight pairs of answers of different lengths, with reference log-probabilities."""
    rng = np.random.default_rng(4)

    def answer() -> Example:
        size = int(rng.integers(4, 14))
        return Example(rng.integers(1, VOCAB, size), np.arange(size) >= 2)

    made = [Pair(str(number), answer(), answer(), margin=0.5) for number in range(8)]
    rows = PairRows(made, seq_len=32, pad_id=0)
    rows.reference = torch.from_numpy(-20 * rng.random((8, 2), dtype=np.float32))
    return rows


def gradient(what: str, layout: Layout) -> tuple[dict[str, np.ndarray], float, float]:
    """Gradients summed over the pairs of all ranks, their norm, and the loss."""
    world = join(layout) if layout.size > 1 else World()
    share = 8 // world.size
    mine = np.arange(world.rank * share, (world.rank + 1) * share)
    model: nn.Module = tiny_model()
    if what == "reward":
        model = RewardModel(tiny_model())
        nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(2))
    parallelize(model, world)
    if what == "reward":
        loss = BradleyTerry()(model, RewardRows(pairs()).read(mine))  # type: ignore[arg-type]
    else:
        loss = PairObjective(what)(model, pairs().read(mine))  # type: ignore[arg-type]
    loss.total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    sum_gradients(trained.values(), world)
    grads = {name: p.grad for name, p in trained.items() if p.grad is not None}
    norm = gradient_norm(list(grads.values()), world)
    return {name: whole(grad).numpy() for name, grad in grads.items()}, norm, world.sum([loss.total.item()])[0]


@pytest.mark.parametrize("what", ["dpo", "orpo", "reward"])
def test_gradients_are_those_of_one_process(what: str) -> None:
    expected, norm, loss = gradient(what, Layout())
    found, their_norm, their_loss = run_ranks(2, gradient, what, Layout(shard=2))[1]
    assert (their_norm, their_loss) == (pytest.approx(norm, rel=1e-5), pytest.approx(loss, rel=1e-5))
    assert set(found) == set(expected)
    for name, grad in expected.items():
        np.testing.assert_allclose(found[name], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=name)
