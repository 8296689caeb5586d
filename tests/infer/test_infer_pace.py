"""Pace against machines whose steps take a known time, and what reading costs against the law that it is to find."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from liuyi.infer.pace import Pace
from liuyi.infer.reading_cost import Piece, ReadingCost

STEP_S = 0.006
Law = Callable[[int, int], float]
"""Seconds that so many tokens add to a step where the first lies at some position."""


def linear(count: int, position: int) -> float:
    return 0.0005 + 0.0001 * count + position * (2e-7 + 5e-8 * count)


def in_tiles(count: int, position: int) -> float:
    """As where five tokens are multiplied in the time of one."""
    return 0.0005 + 0.0001 * count + position * (1 + -(-count // 5)) * 2.5e-7


class Machine:
    """Four sequences and a prompt, whose steps take what a law says."""

    def __init__(
        self, pace: Pace, law: Law, *, jitter: float = 0.0, outliers: float = 0.0, growth: float = 0.0
    ) -> None:
        """`growth` is the part by which a step without a prompt is longer after each."""
        self.steps: list[float] = []
        self.pieces: list[Piece | None] = []
        self._pace, self._law = pace, law
        self._jitter, self._outliers, self._growth = jitter, outliers, growth
        self._chance = random.Random(0)
        for _ in range(100):
            pace.observe(4, 0, [], STEP_S)

    def read(self, tokens: int) -> list[float]:
        """Seconds of the steps that read so many tokens."""
        position, count, left, before = 0, 0, 0, len(self.steps)
        while position < tokens:
            budget = self._pace.budget(generating=4, reading=1)
            if left:
                layers = budget.layers(count, position, left)
            else:
                count, layers = budget.piece(position, tokens - position)
                left = self._pace.layers if count else 0
            self._step(Piece(count, position, layers / self._pace.layers) if layers else None)
            left -= layers
            position += 0 if left else count
            count = count if left else 0
        return self.steps[before:]

    def _step(self, piece: Piece | None) -> None:
        more_s = self._law(piece.tokens, piece.position) * piece.share if piece else 0.0
        step_s = STEP_S * (1 + self._growth * len(self.steps))
        seconds = (step_s + more_s) * (1 + abs(self._chance.gauss(0, self._jitter)))
        seconds *= 3 if self._chance.random() < self._outliers else 1
        self._pace.observe(4, 0, [piece] if piece else [], seconds)
        self.steps.append(seconds)
        self.pieces.append(piece)


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
    machine = Machine(Pace(prefill_tokens=512, stretch=1.75), law, jitter=0.03)
    for _ in range(2):
        steps = machine.read(4096)
        assert sorted(steps)[int(0.99 * len(steps))] < 2 * STEP_S
        assert max(steps) < 2.2 * STEP_S
        assert sum(steps) < 1.12 * shortest(law, 4096, 1.75)


@pytest.mark.parametrize("law", [linear, in_tiles])
@pytest.mark.parametrize("layers", [24, 32])
def test_many_tokens_through_a_few_layers_are_read_faster_in_steps_as_even(law: Law, layers: int) -> None:
    machine = Machine(Pace(prefill_tokens=512, stretch=1.5, layers=layers), law, jitter=0.03)
    for _ in range(2):
        steps = machine.read(4096)
        assert sorted(steps)[int(0.99 * len(steps))] < 1.75 * STEP_S
        # The work of 64 tokens at a time, in steps that are nearly full.
        work = sum(law(64, position) for position in range(0, 4096, 64))
        assert sum(steps) < 1.12 * 3 * work
        assert sum(steps) < 0.75 * shortest(law, 4096, 1.5)
    assert all(piece.tokens <= 128 for piece in machine.pieces if piece)


@pytest.mark.parametrize("law", [linear, in_tiles])
@pytest.mark.parametrize("layers", [1, 30])
def test_steps_that_the_system_interrupts_do_not_slow_reading(law: Law, layers: int) -> None:
    machine = Machine(Pace(prefill_tokens=512, stretch=1.75, layers=layers), law, jitter=0.05, outliers=0.1)
    steps = machine.read(4096)
    # One step in ten takes three times as long, all together 1.2 times: not to be taken for what reading costs.
    assert sorted(steps)[len(steps) // 2] == pytest.approx(1.75 * STEP_S, rel=0.06)
    assert sum(steps) < 1.45 * shortest(law, 4096, 1.75)


def test_what_interrupts_steps_without_prompts_is_not_given_to_prompts() -> None:
    pace, chance = Pace(prefill_tokens=512, stretch=1.75), random.Random(0)
    for _ in range(100):
        pace.observe(4, 0, [], STEP_S * (5 if chance.random() < 0.3 else 1))
    assert pace.step_s(4) == pytest.approx(STEP_S)


def test_a_row_of_slow_steps_just_before_a_prompt_does_not_make_its_steps_long() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.6, layers=30)
    machine = Machine(pace, linear, jitter=0.03)
    for _ in range(40):
        pace.observe(4, 0, [], 3 * STEP_S)
    steps = machine.read(4096)
    assert sorted(steps)[len(steps) // 2] < 1.7 * STEP_S
    assert sorted(steps)[int(0.99 * len(steps))] < 1.9 * STEP_S


def test_steps_that_grow_with_their_texts_leave_prompts_their_share() -> None:
    machine = Machine(Pace(prefill_tokens=512, stretch=1.6, layers=30), linear, jitter=0.03, growth=0.0005)
    steps = machine.read(4096)
    assert len(steps) > 200
    for step, seconds in enumerate(steps):
        assert seconds < 1.9 * STEP_S * (1 + 0.0005 * step)
    last = sorted(steps[-60:])[30] / (STEP_S * (1 + 0.0005 * len(steps)))
    assert last == pytest.approx(1.6, abs=0.1)


@pytest.mark.parametrize("layers", [1, 30])
def test_tokens_that_turn_dear_are_noticed_within_a_few_steps(layers: int) -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75, layers=layers)
    Machine(pace, linear).read(1024)
    steps = Machine(pace, lambda count, position: 5 * linear(count, position)).read(1024)
    assert all(seconds < 1.9 * STEP_S for seconds in steps[5:])


def test_the_cost_of_reading_is_found_from_what_was_read() -> None:
    cost, chance = ReadingCost(), random.Random(0)
    assert not cost.tokens(-1.0, 0, 512)
    for _ in range(3000):
        count, position, share = chance.randint(1, 64), chance.randint(0, 8000), chance.choice([0.1, 0.5, 1.0])
        cost.learn([Piece(count, position, share)], share * linear(count, position))
    for count, position in ((1, 0), (8, 4000), (40, 500), (64, 8000)):
        assert cost.seconds([Piece(count, position)]) == pytest.approx(linear(count, position), rel=0.1, abs=2e-4)
    # Two at once cost as much as both, half of the layers half as much.
    both = cost.seconds([Piece(8, 100)]) + cost.seconds([Piece(16, 3000, 0.5)])
    assert cost.seconds([Piece(8, 100), Piece(16, 3000, 0.5)]) == pytest.approx(both)
    assert cost.seconds([Piece(16, 3000, 0.5)]) == pytest.approx(cost.seconds([Piece(16, 3000)]) / 2)
    for share in (0.25, 1.0):
        most = cost.tokens(0.005, 4000, 512, share)
        assert cost.seconds([Piece(most, 4000, share)]) <= 0.005 < cost.seconds([Piece(most + 1, 4000, share)])
    assert cost.tokens(0.005, 4000, 3) == 3


def test_pieces_that_seemed_to_cost_nothing_are_learned_anew() -> None:
    cost = ReadingCost()
    cost.learn([Piece(8, 0)], 0.0)
    assert cost.tokens(0.001, 0, 512) == 512
    cost.learn([Piece(8, 0)], 0.004)
    assert cost.seconds([Piece(8, 0)]) == pytest.approx(0.004)


def test_a_prompt_that_drafts_seemed_to_pay_for_does_not_end_pacing() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    pace.observe(2, 0, [], 0.004)
    pace.observe(2, 4, [], 0.012)
    # Drafts have become cheaper since, so that nothing seems to be left for the piece.
    pace.observe(2, 4, [Piece(8, 0)], 0.006)
    for _ in range(20):
        count, _ = pace.budget(generating=2, reading=1).piece(0, 512)
        pace.observe(2, 0, [Piece(count, 0)], 0.004 + 0.0002 * count)
    assert 8 <= count <= 12


def test_what_a_step_takes_without_prompts_is_learned_while_prompts_wait() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    counts = []
    for _ in range(200):
        count, _ = pace.budget(generating=3, reading=1).piece(0, 512)
        counts.append(count)
        pace.observe(3, 0, [Piece(count, 0)] if count else [], 0.004 + 0.0001 * count)
    assert [at for at, tokens in enumerate(counts) if not tokens] == [0, 33, 66, 99, 132, 165, 198]
    assert all(tokens in (19, 20) for tokens in counts[10:] if tokens)


def test_those_that_wait_count_as_much_as_those_that_speak() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    Machine(pace, linear).read(1000)
    pace.observe(4, 0, [Piece(100, 1000)], STEP_S + linear(100, 1000))
    alone, many = (pace.budget(generating=4, reading=reading).piece(100, 512)[0] for reading in (1, 8))
    assert 0 < alone < many
    # Nobody speaks, or steps are to follow no clock: whatever time it takes.
    assert pace.budget(generating=0, reading=1).piece(100, 600) == (512, 1)
    assert Pace(prefill_tokens=512).budget(generating=4, reading=1).piece(100, 600) == (512, 1)
    assert Pace(prefill_tokens=512, layers=30).budget(generating=4, reading=1).piece(100, 600) == (512, 30)


def test_pieces_of_one_step_share_its_time() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75)
    Machine(pace, linear).read(4096)
    budget = pace.budget(generating=4, reading=2)
    first, _ = budget.piece(2000, 512)
    budget.take(Piece(first // 2, 2000))
    second, _ = budget.piece(2000, 512)
    assert 0 < second < first
    budget.take(Piece(second, 2000))
    assert budget.piece(2000, 512) == (0, 0)


def test_what_a_piece_leaves_of_a_step_is_for_another_whole_or_in_part() -> None:
    pace = Pace(prefill_tokens=512, stretch=2.0, layers=30)
    Machine(pace, linear).read(4096)
    budget = pace.budget(generating=4, reading=1)
    tokens, layers = budget.piece(2000, 512)
    assert 64 <= tokens <= 128
    assert 1 < layers < 15
    assert budget.piece(2000, 5) == (5, 30)
    half = layers // 2
    budget.take(Piece(tokens, 2000, half / 30))
    assert abs(budget.layers(tokens, 2000, 20) - (layers - half)) <= 1
    whole, through = budget.piece(2000, 512, whole=True)
    assert (whole < 64, through) == (True, 30)
    assert budget.piece(2000, 512)[1] < layers


@pytest.mark.parametrize("left", range(1, 31))
def test_the_steps_of_a_piece_are_even_and_end(left: int) -> None:
    pace = Pace(prefill_tokens=512, stretch=1.75, layers=30)
    Machine(pace, linear).read(4096)
    taken = []
    while left:
        taken.append(pace.budget(generating=4, reading=1).layers(70, 1500, left))
        left -= taken[-1]
    assert min(taken) >= max(taken) - 2
    # A step that may not read, to see what others take, takes up no piece.
    assert Pace(prefill_tokens=512, stretch=1.5, layers=30).budget(2, 1).layers(70, 1500, 30) == 0


def test_prompts_and_drafts_are_told_apart() -> None:
    pace = Pace(prefill_tokens=512, stretch=1.5)
    pace.observe(2, 0, [], 0.004)
    assert pace.verify_cost.seconds(4) == 0
    for _ in range(5):
        pace.observe(2, 4, [], 0.006)
    assert pace.verify_cost.seconds(4) == pytest.approx(0.002)
    for _ in range(20):
        pace.observe(2, 4, [Piece(10, 0)], 0.007)
    assert pace.verify_cost.seconds(4) == pytest.approx(0.002)
    count, _ = pace.budget(generating=2, reading=1).piece(0, 512)
    assert 18 <= count <= 22
