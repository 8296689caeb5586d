"""Calibration against formulas and by simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import beta

from liuyi.apply.calibrate import (
    Bin,
    Calibrator,
    choose_threshold,
    error_bound,
    expected_calibration_error,
    fit,
    reliability,
    score_logprobs,
)
from liuyi.core.errors import DataError


def sample(seed: int, items: int, slope: float = 1.5, intercept: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = -rng.exponential(1.5, items)
    return scores, rng.random(items) < 1 / (1 + np.exp(-(slope * scores + intercept)))


def test_scores_of_logprobs() -> None:
    logprobs = [-0.1, -0.5, -0.2]
    for score, logprob in (("sum", -0.8), ("mean", -0.8 / 3), ("min", -0.5)):
        assert 1 / (1 + math.exp(-score_logprobs(logprobs, score))) == pytest.approx(math.exp(logprob))  # type: ignore[arg-type]
    assert score_logprobs([], "sum") == -math.inf
    assert math.isfinite(score_logprobs([0.0], "sum"))
    assert math.isfinite(score_logprobs([-800.0], "sum"))


def test_platt_leaves_a_calibrated_model_alone() -> None:
    rng = np.random.default_rng(4)
    p = rng.uniform(0.02, 0.999, 4000)
    scores = [score_logprobs([math.log(value)], "sum") for value in p]
    slope, intercept = fit(scores, list(rng.random(4000) < p), "platt").parameters
    assert slope == pytest.approx(1.0, abs=0.1)
    assert intercept == pytest.approx(0.0, abs=0.1)


def test_platt_is_the_likeliest_logistic_curve() -> None:
    scores, right = sample(1, 400)
    fitted = fit(list(scores), list(right), "platt")
    good, bad = right.sum(), (~right).sum()
    target = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))

    def loss(w: np.ndarray) -> float:
        z = w[0] * scores + w[1]
        return float(np.sum(np.logaddexp(0, z) - target * z))

    best = minimize(loss, np.zeros(2), method="BFGS").x
    assert fitted.parameters == pytest.approx(tuple(best), rel=1e-3)


def test_platt_stays_finite_where_scores_part_right_from_wrong() -> None:
    fitted = fit([-3.0] * 10 + [-0.1] * 10, [False] * 10 + [True] * 10, "platt")
    assert all(math.isfinite(value) for value in fitted.parameters)
    assert fitted(-3.0) < 0.15
    assert fitted(-0.1) > 0.85


def test_isotonic_is_the_running_mean_of_pools() -> None:
    scores = [float(n) for n in range(12)]
    right = [False, False, True, False, True, True, False, True, True, True, True, True]
    fitted = fit(scores, right, "isotonic")
    assert fitted(2.5) == pytest.approx(0.5)  # the pool of items 2 and 3
    assert fitted(11.0) == 1.0
    assert fitted(-5.0) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 0), st.booleans()), min_size=10, max_size=60),
    st.sampled_from(["platt", "isotonic"]),
)
def test_confidence_never_falls_as_the_score_rises(data: list[tuple[float, bool]], method: str) -> None:
    fitted = fit([score for score, _ in data], [right for _, right in data], method)  # type: ignore[arg-type]
    confidences = [fitted(score) for score in np.linspace(-25, 1, 50)]
    assert all(0 <= value <= 1 for value in confidences)
    assert all(b >= a - 1e-12 for a, b in pairwise(confidences))
    again = Calibrator.from_json(fitted.as_json())
    assert [again(score) for score in np.linspace(-25, 1, 50)] == confidences


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        fit([-1.0] * 9, [True] * 9, "platt")


def test_calibration_helps_on_unseen_answers() -> None:
    scores, right = sample(2, 2000)
    fitted = fit(list(scores[:1000]), list(right[:1000]), "platt")
    raw = expected_calibration_error(reliability([math.exp(s) for s in scores[1000:]], list(right[1000:])))
    mended = expected_calibration_error(reliability([fitted(s) for s in scores[1000:]], list(right[1000:])))
    assert mended < 0.05 < raw


def test_calibration_error_by_hand() -> None:
    bins = [Bin(0.2, 0.5, 10), Bin(0.9, 0.8, 30)]
    assert expected_calibration_error(bins) == pytest.approx((10 * 0.3 + 30 * 0.1) / 40)
    assert [each.count for each in reliability([0.1] * 25, [True] * 25, bins=10)] == [3] * 5 + [2] * 5


@pytest.mark.parametrize(("wrong", "items"), [(0, 59), (3, 100), (10, 50)])
def test_error_bound_is_clopper_pearson(wrong: int, items: int) -> None:
    values = [True] * wrong + [False] * (items - wrong)
    expected = beta.ppf(0.95, wrong + 1, items - wrong)
    assert error_bound(values, list(range(items)), 0.95) == pytest.approx(expected, rel=1e-9)


def test_error_bound_counts_clusters() -> None:
    values = [False] * 60
    assert error_bound(values, [n // 3 for n in range(60)], 0.95) > error_bound(values, list(range(60)), 0.95)
    assert error_bound([], [], 0.95) == 1.0


def test_threshold_is_the_lowest_that_holds() -> None:
    confidence = [n / 1000 for n in range(1000)]
    right = [n >= 500 for n in range(1000)]
    chosen = choose_threshold(confidence, right, list(range(1000)), risk=0.05)
    assert chosen.holds
    assert 0.45 < chosen.value <= 0.53
    assert chosen.bound <= 0.05
    assert chosen.wrong / chosen.answered <= 0.05


def test_no_threshold_where_confidence_says_nothing() -> None:
    rng = np.random.default_rng(0)
    chosen = choose_threshold(list(rng.random(500)), list(rng.random(500) < 0.7), list(range(500)), risk=0.05)
    assert not chosen.holds
    assert chosen.answered == 0
    assert not choose_threshold([], [], [], risk=0.05).holds


@pytest.mark.slow
def test_the_risk_is_kept_as_often_as_promised() -> None:
    """Over many worlds, the true error above the chosen threshold exceeds the risk at most as often as allowed."""
    broken = 0
    worlds = 200
    scores, right = sample(99, 200_000)
    for world in range(worlds):
        s, r = sample(world, 400)
        chosen = choose_threshold(list(np.exp(s)), list(r), list(range(400)), risk=0.1, level=0.9)
        if chosen.holds:
            above = np.exp(scores) >= chosen.value
            broken += (~right[above]).mean() > 0.1
    assert broken / worlds <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / worlds)
