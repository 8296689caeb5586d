"""The report of stragglers: a slow rank is named, and waiting for it is nobody's fault."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from parallel_runs import Run, Trained, train

from liuyi.train.inject import Injector
from liuyi.train.parallel.stragglers import Report, Stragglers
from liuyi.train.world import Layout, World, join
from ranks import run_ranks


def test_one_process_holds_nobody_up() -> None:
    stragglers = Stragglers(World(), window_steps=1)
    assert stragglers.after_step(1.0) is None


def reports() -> list[Report | None]:
    stragglers = Stragglers(join(Layout(replicate=4)), window_steps=3)
    steps_s = {0: [0.1, 0.1, 0.1], 1: [0.1, 9.0, 0.1], 2: [0.3, 0.3, 0.2], 3: [0.09, 0.1, 0.11]}
    return [stragglers.after_step(seconds) for seconds in 2 * steps_s[stragglers.world.rank]]


def test_ranks_are_compared_by_their_medians() -> None:
    """A hiccup of rank 1 is forgiven, rank 2 is slow at most steps; every rank knows, once in three steps."""
    for found in run_ranks(4, reports):
        assert [report is not None for report in found] == [False, False, True] * 2
        assert found[2] is not None
        assert found[2].ratios == pytest.approx([1.0, 1.0, 3.0, 1.0])
        assert found[2].slow == [2]
        assert str(found[2]) == "rank 2 takes 3.00 times as long as the others"


def idle(folder: Path, run: Run) -> Trained:
    """Where the run is to be slow it idles for 0.4 s a step, many times what computing takes even on a busy machine."""
    from liuyi.train import loop

    slow_down = Injector.slow_down
    Injector.slow_down = lambda injector, step, seconds: slow_down(injector, step, 0.4)  # type: ignore[method-assign]
    loop.Stragglers = partial(Stragglers, window_steps=run.steps)  # type: ignore[misc, assignment]
    return train(folder, run)


@pytest.mark.parametrize("layout", [Layout(replicate=2), pytest.param(Layout(shard=2), marks=pytest.mark.slow)])
def test_a_slow_rank_is_named(tmp_path: Path, layout: Layout) -> None:
    """And rank 0, which waits for it at every step, is not."""
    first, _ = run_ranks(2, idle, tmp_path, Run(layout, steps=5, micro_rows=4, faults="slow:1@0"))
    assert isinstance(first, Trained)
    ratios = {name: value for name, value, _ in first.metrics if name.startswith("relative_step_time")}
    assert ratios["relative_step_time_rank_0"] == 1.0
    assert ratios["relative_step_time_rank_1"] > 1.25
    assert any("rank 1 takes" in line and "rank 0" not in line for line in first.told)
