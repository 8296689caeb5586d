"""Pace against machines whose steps take a known time, and what reading costs against the law that it is to find."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from liuyi.infer.pace import Pace
from liuyi.infer.reading_cost import ReadingCost

STEP_S = 0.006
Law = Callable[[int, int], float]
"""Seconds that so many tokens add to a step where the first lies at some position."""


def linear(count: int, position: int) -> float:
    return 0.0005 + 0.0001 * count + position * (2e-7 + 5e-8 * count)


def in_tiles(count: int, position: int) -> float:
    """As where five tokens are multiplied in the time of one."""
    return 0.0005 + 0.0001 * count + position * (1 + -(-count // 5)) * 2.5e-7


def read(pace: Pace, law: Law, tokens: int, *, jitter: float = 0.0, outliers: float = 0.0) -> list[float]:
    """Seconds of the steps that read so many tokens beside four sequences."""
    chance = random.Random(0)
    for _ in range(100):
        pace.observe(4, 0, [], STEP_S)
    position, steps = 0, []
    while position < tokens:
        budget = pace.budget(generating=4, reading=1)
        count = min(tokens - position, budget.tokens(position))
        seconds = (STEP_S + (law(count, position) if count else 0.0)) * (1 + abs(chance.gauss(0, jitter)))
        steps.append(seconds * (3 if chance.random() < outliers else 1))
        pace.observe(4, 0, [(count, position)] if count else [], steps[-1])
        position += count
    return steps


def shortest(law: Law, tokens: int, stretch: float) -> float:
    """Seconds to read so many tokens if each step is as long as it may be, by trying each count."""
    position, seconds = 0, 0.0
    while position < tokens:
        count = 1
        while law(count + 1, position) <= (stretch - 1) * STEP_S:
            count += 1
        position += count
        seconds += STEP_S + law(count, position)
    return seconds


@pytest.mark.parametrize("law", [linear, in_tiles])
def test_a_prompt_is_read_almost_as_fast_as_may_be_without_long_steps(law: Law) -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75)
    for _ in range(2):
        steps = read(pace, law, 4096, jitter=0.03)
        assert sorted(steps)[int(0.99 * len(steps))] < 2 * STEP_S
        assert max(steps) < 2.2 * STEP_S
        assert sum(steps) < 1.12 * shortest(law, 4096, 1.75)


@pytest.mark.parametrize("law", [linear, in_tiles])
def test_steps_that_the_system_interrupts_do_not_slow_reading(law: Law) -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75)
    steps = read(pace, law, 4096, jitter=0.05, outliers=0.1)
    # One step in ten takes three times as long, all together 1.2 times: not to be taken for what reading costs.
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1.75 * STEP_S, rel=0.05)
    assert sum(steps) < 1.45 * shortest(law, 4096, 1.75)


def test_what_interrupts_steps_without_prompts_is_not_given_to_prompts() -> None:
    pace, chance = Pace(prefill_tokens=512, stretch=1.75), random.Random(0)
    for _ in range(100):
        pace.observe(4, 0, [], STEP_S * (5 if chance.random() < 0.3 else 1))
    assert pace.step_s(4) == pytest.approx(STEP_S)


def test_tokens_that_turn_dear_are_noticed_within_a_few_steps() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75)
    read(pace, linear, 1024)
    steps = read(pace, lambda count, position: 5 * linear(count, position), 1024)
    assert all(seconds < 1.9 * STEP_S for seconds in steps[5:])


def test_the_cost_of_reading_is_found_from_what_was_read() -> None:
    cost, chance = ReadingCost(), random.Random(0)
    assert not cost.tokens(-1.0, 0, 512)
    for _ in range(3000):
        count, position = chance.randint(1, 64), chance.randint(0, 8000)
        cost.learn([(count, position)], linear(count, position))
    for count, position in ((1, 0), (8, 4000), (40, 500), (64, 8000)):
        assert cost.seconds([(count, position)]) == pytest.approx(linear(count, position), rel=0.1, abs=2e-4)
    # Two at once cost as much as both.
    both = cost.seconds([(8, 100)]) + cost.seconds([(16, 3000)])
    assert cost.seconds([(8, 100), (16, 3000)]) == pytest.approx(both)
    most = cost.tokens(0.005, 4000, 512)
    assert cost.seconds([(most, 4000)]) <= 0.005 < cost.seconds([(most + 1, 4000)])
    assert cost.tokens(0.005, 4000, 3) == 3


def test_pieces_that_seemed_to_cost_nothing_are_learned_anew() -> None:
    cost = ReadingCost()
    cost.learn([(8, 0)], 0.0)
    assert cost.tokens(0.001, 0, 512) == 512
    cost.learn([(8, 0)], 0.004)
    assert cost.seconds([(8, 0)]) == pytest.approx(0.004)


def test_a_prompt_that_drafts_seemed_to_pay_for_does_not_end_pacing() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    pace.observe(2, 0, [], 0.004)
    pace.observe(2, 4, [], 0.012)
    # Drafts have become cheaper since, so that nothing seems to be left for the piece.
    pace.observe(2, 4, [(8, 0)], 0.006)
    for _ in range(20):
        count = pace.budget(generating=2, reading=1).tokens(0)
        pace.observe(2, 0, [(count, 0)], 0.004 + 0.0002 * count)
    assert 8 <= count <= 12


def test_what_a_step_takes_without_prompts_is_learned_while_prompts_wait() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    counts = []
    for _ in range(200):
        counts.append(count := pace.budget(generating=3, reading=1).tokens(0))
        pace.observe(3, 0, [(count, 0)] if count else [], 0.004 + 0.0001 * count)
    assert [at for at, tokens in enumerate(counts) if not tokens] == [0, 65, 130, 195]
    assert all(tokens in (19, 20) for tokens in counts[10:] if tokens)


def test_those_that_wait_count_as_much_as_those_that_speak() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    read(pace, linear, 1000)
    pace.observe(4, 0, [(100, 1000)], STEP_S + linear(100, 1000))
    alone, many = (pace.budget(generating=4, reading=reading).tokens(100) for reading in (1, 8))
    assert 0 < alone < many
    # Nobody speaks, or steps are to follow no clock: whatever time it takes.
    assert pace.budget(generating=0, reading=1).tokens(100) == 512
    assert Pace(prefill_tokens=512).budget(generating=4, reading=1).tokens(100) == 512


def test_pieces_of_one_step_share_its_time() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75)
    read(pace, linear, 4096)
    budget = pace.budget(generating=4, reading=2)
    first = budget.tokens(2000)
    budget.take(first // 2, 2000)
    second = budget.tokens(2000)
    assert 0 < second < first
    budget.take(second, 2000)
    assert budget.tokens(2000) == 0


def test_prompts_and_drafts_are_told_apart() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    pace.observe(2, 0, [], 0.004)
    assert pace.verify_cost.seconds(4) == 0
    for _ in range(5):
        pace.observe(2, 4, [], 0.006)
    assert pace.verify_cost.seconds(4) == pytest.approx(0.002)
    for _ in range(50):
        pace.observe(2, 4, [(10, 0)], 0.007)
    assert pace.verify_cost.seconds(4) == pytest.approx(0.002)
    count = pace.budget(generating=2, reading=1).tokens(0)
    assert 18 <= count <= 22
