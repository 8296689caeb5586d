"""Every way of dividing a run, alone and together: the curve of losses and the weights of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parallel_runs import Run, train

from liuyi.train.world import Layout
from ranks import run_ranks

SLOW = pytest.mark.slow


def short(layout: Layout, optimiser: str = "adamw", *, shape: str, micro_rows: int = 2) -> Run:
    """Warmed up, and then at the full learning rate; of each step's micro-batches some have few targets."""
    return Run(layout, optimiser, steps=4, micro_rows=micro_rows, shape=shape)


@pytest.mark.parametrize(
    "run",
    [
        short(Layout(context=2), shape="mistral"),
        pytest.param(short(Layout(tensor=2), shape="qwen2"), marks=SLOW),
        short(Layout(tensor=2), "muon", shape="qwen3", micro_rows=4),
        pytest.param(short(Layout(shard=2, context=2), "muon", shape="qwen3"), marks=SLOW),
        pytest.param(short(Layout(shard=2, tensor=2), "muon", shape="qwen3"), marks=SLOW),
        pytest.param(short(Layout(replicate=2, tensor=2), shape="qwen2"), marks=SLOW),
        pytest.param(short(Layout(context=2, tensor=2), shape="mistral"), marks=SLOW),
        pytest.param(short(Layout(shard=2, tensor=2), shape="experts"), marks=SLOW),
    ],
    ids=lambda run: "-".join([run.shape, run.optimiser, *map(str, run.layout.sizes)]),
)
def test_a_run_that_is_divided_is_the_same_run(tmp_path: Path, run: Run) -> None:
    alone = train(tmp_path / "alone", run.alone)
    ranks = run_ranks(run.layout.size, train, tmp_path / "together", run)
    np.testing.assert_allclose(ranks[0].curve, alone.curve, rtol=2e-4)
    for name, weight in alone.weights.items():
        np.testing.assert_allclose(ranks[0].weights[name], weight, rtol=2e-4, atol=5e-5, err_msg=name)
        for other in ranks[1:]:
            np.testing.assert_array_equal(other.weights[name], ranks[0].weights[name], err_msg=name)
