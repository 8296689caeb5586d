"""What drafted tokens add to a step is learned as a curve, whatever its form, and single long steps do not count."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liuyi.infer.verify_cost import VerifyCost

SIZES = [1, 3, 7, 12, 24, 48, 100]


def tile(tokens: int) -> float:
    """As of a matrix unit: what sixteen rows cost."""
    return 0.002 * -(-tokens // 16)


def learned(costs: dict[int, float], times: int = 7) -> VerifyCost:
    cost = VerifyCost()
    for tokens, seconds in costs.items():
        for _ in range(times):
            cost.learn(tokens, seconds)
    return cost


def test_nothing_is_known_at_first_and_little_is_tried() -> None:
    cost = VerifyCost()
    assert cost.seconds(5) == 0
    assert cost.most == 8
    for _ in range(2):
        cost.learn(8, 0.1)
        assert (cost.seconds(8), cost.most) == (0, 8)
    cost.learn(8, 0.1)
    assert cost.seconds(8) == pytest.approx(0.1)
    assert cost.most == 16


def test_what_was_measured_is_what_is_said() -> None:
    cost = learned({tokens: tile(tokens) for tokens in SIZES})
    assert [cost.seconds(tokens) for tokens in SIZES] == pytest.approx([tile(tokens) for tokens in SIZES])
    assert cost.seconds(200) == pytest.approx(2 * tile(100))
    assert cost.seconds(0) == 0


def test_single_long_steps_do_not_count() -> None:
    cost = learned({8: 0.003, 20: 0.006})
    for _ in range(3):
        cost.learn(8, 0.5)
    assert cost.seconds(8) == pytest.approx(0.003)


def test_what_seemed_dear_is_tried_again_in_time() -> None:
    cost = learned({8: 0.5}, times=3)
    for _ in range(300):
        cost.learn(0, 0.0)
    assert cost.seconds(8) == 0


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1)), max_size=60))
def test_more_tokens_never_cost_less(measured: list[tuple[int, float]]) -> None:
    cost = VerifyCost()
    for tokens, seconds in measured:
        cost.learn(tokens, seconds)
    said = [cost.seconds(tokens) for tokens in range(260)]
    assert all(low <= high * (1 + 1e-9) + 1e-12 for low, high in pairwise(said))
