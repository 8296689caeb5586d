"""The statistics against scipy, statsmodels, brute force and the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as reference
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from liuyi.core.effect import Comparison
from liuyi.core.errors import DataError
from liuyi.evaluate import stats
from liuyi.evaluate.stats.proportion import tango_statistic

counts = st.integers(0, 60)


@given(counts, counts)
def test_mcnemar_is_the_exact_test_of_statsmodels(gained: int, lost: int) -> None:
    expected = reference_mcnemar([[5, gained], [lost, 7]], exact=True).pvalue if gained + lost else 1.0
    assert stats.mcnemar_exact(gained, lost) == pytest.approx(min(1.0, expected))


def test_a_published_unpaired_mistake_is_not_ours() -> None:
    """220 items, 25 gained and 8 lost: unpaired tests see little, the paired test sees it."""
    before = np.r_[np.ones(100), np.zeros(120)]
    after = before.copy()
    after[:8], after[100:125] = 0, 1
    found = stats.compare(before, after, clusters=None, metric="right")
    assert found.p_value == pytest.approx(reference.binomtest(8, 33).pvalue)
    unpaired = reference.chi2_contingency([[100, 120], [117, 103]], correction=False).pvalue
    assert unpaired > 0.05 > 0.01 > found.p_value


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_cluster_sign_flips_enumerate_every_assignment(sums: list[int]) -> None:
    seen = abs(sum(sums))
    extreme = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True))) >= seen
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    assert stats.flip_whole_sums(np.array(sums)) == pytest.approx(np.mean(extreme))
    assert stats.flip_sums(np.array(sums, dtype=float)) == pytest.approx(np.mean(extreme))


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
def test_the_cluster_test_of_single_items_is_mcnemar(sums: list[int]) -> None:
    exact = stats.mcnemar_exact(sums.count(1), sums.count(-1))
    assert stats.flip_whole_sums(np.array(sums)) == pytest.approx(exact)
    doubled = stats.flip_whole_sums(np.array(sums) * 2)
    assert doubled == pytest.approx(exact), "clusters of two identical items hold no more evidence than one"


def test_sampled_sign_flips_agree_with_scipy() -> None:
    rng = np.random.default_rng(5)
    difference = rng.normal(0.35, 1, size=30)
    expected = reference.permutation_test(
        (difference, np.zeros(30)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    assert stats.flip_sums(difference) == pytest.approx(expected, abs=0.006)
    assert stats.flip_sums(difference + 100, flips=999) == pytest.approx(1 / 1000)


@given(counts, st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_share_intervals_agree_with_statsmodels(right: int, wrong: int, level: float) -> None:
    items = right + wrong
    exact = proportion_confint(right, items, alpha=1 - level, method="beta")
    assert stats.clopper_pearson(right, items, level) == pytest.approx(exact, abs=1e-9)
    score = proportion_confint(right, items, alpha=1 - level, method="wilson")
    assert stats.wilson(right, items, level) == pytest.approx(score, abs=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(5, 60), st.floats(-0.6, 0.6))
def test_tango_is_the_score_under_the_constrained_maximum_likelihood(
    gained: int, lost: int, same: int, difference: float
) -> None:
    items = gained + lost + same

    def minus_log_likelihood(p_lost: float) -> float:
        cells = np.array([p_lost + difference, p_lost, 1 - 2 * p_lost - difference])
        return -float((np.array([gained, lost, same]) * np.log(np.maximum(cells, 1e-300))).sum())

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    p_lost = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, options={"xatol": 1e-12}).x
    variance = items * (2 * p_lost + difference - difference**2)
    expected = (gained - lost - items * difference) / math.sqrt(variance)
    assert tango_statistic(gained, lost, items, difference) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_tango_interval_ends_where_the_score_meets_the_quantile() -> None:
    low, high = stats.tango(12, 5, 80)
    assert tango_statistic(12, 5, 80, low) == pytest.approx(reference.norm.ppf(0.975), abs=1e-6)
    assert tango_statistic(12, 5, 80, high) == pytest.approx(reference.norm.ppf(0.025), abs=1e-6)
    assert stats.tango(0, 0, 50)[1] == pytest.approx(1.959964**2 / (50 + 1.959964**2), abs=1e-5)
    assert stats.tango(50, 0, 50)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("p_values", [[0.5], [0.01, 0.04, 0.03, 0.005], [1.0, 0.0, 0.2, 0.2, 0.9], [0.02] * 7])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert stats.holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_adjusted_comparisons_keep_their_order_and_skip_untested_ones() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 40))
    made = [
        stats.compare(before, after + shift, clusters=None, kind="real", metric=str(shift)) for shift in (0, 0.6, 0.3)
    ]
    made.insert(1, made[0].model_copy(update={"p_value": None}))
    adjusted = stats.adjust(made)
    expected = stats.holm([made[0].p_value, made[2].p_value, made[3].p_value])
    assert [c.p_adjusted for c in adjusted] == [expected[0], None, expected[1], expected[2]]


def test_standard_error_of_single_items_is_the_textbook_one() -> None:
    values = np.random.default_rng(3).gamma(2, size=57)
    sums = stats.cluster_sums(values, np.ones(57), stats.labels(None, 57))
    assert sums.standard_error == pytest.approx(reference.sem(values))
    low, high = stats.student_interval(sums)
    assert (low, high) == pytest.approx(reference.t.interval(0.95, 56, values.mean(), reference.sem(values)))


def test_bootstrap_interval_agrees_with_scipy_where_items_are_many() -> None:
    values = np.random.default_rng(3).gamma(1.5, size=400)
    ours = stats.bootstrap_interval(stats.cluster_sums(values, np.ones(400), stats.labels(None, 400)))
    theirs = reference.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.008)


def test_bootstrap_of_a_ratio_agrees_with_scipy() -> None:
    rng = np.random.default_rng(4)
    size = rng.lognormal(3, 1, size=300)
    bits = size * rng.normal(2, 0.4, size=300)
    ours = stats.estimate(bits, clusters=None, weights=size, kind="ratio")
    theirs = reference.bootstrap(
        (bits, size), lambda x, y, axis: x.sum(axis) / y.sum(axis), paired=True, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.01)
    assert ours.mean == pytest.approx(bits.sum() / size.sum())


def test_non_inferiority_of_real_scores_agrees_with_the_tost_of_statsmodels() -> None:
    rng = np.random.default_rng(8)
    before = rng.normal(size=60)
    after = before + rng.normal(0.04, 0.2, size=60)
    _, (_, p_lower, _), (_, p_upper, _) = ttost_paired(after, before, -0.1, 0.1)
    ours = stats.tost(before, after, clusters=None, margin=0.1, metric="score", kind="real")
    assert (ours.p_lower, ours.p_upper) == pytest.approx((p_lower, p_upper), abs=0.008)
    assert ours.p_value == ours.p_upper > 0.01
    few = stats.tost(before[:6], after[:6], clusters=None, margin=0.1, metric="score", kind="real")
    _, (_, p_lower, _), (_, p_upper, _) = ttost_paired(after[:6], before[:6], -0.1, 0.1)
    assert (few.p_lower, few.p_upper) == pytest.approx((p_lower, p_upper)), "with few clusters it is Student's t"


@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_no_worse_than_a_margin_means_the_interval_lies_within_it(kind: str, better: str) -> None:
    rng = np.random.default_rng(11)
    answers = set()
    for margin in np.linspace(0.01, 0.3, 25):
        before = (rng.random(120) < 0.6) * 1.0
        after = np.where(rng.random(120) < 0.15, 1 - before, before)
        if kind == "real":
            after += rng.normal(0, 0.1, size=120)
        found = stats.compare(
            before, after, clusters=np.arange(120) // 3, metric="m", kind=kind, better=better, margin=margin
        )
        inside = found.low > -margin if better == "higher" else found.high < margin
        assert inside == (found.p_value < 0.025)
        answers.add(inside)
    assert answers == {True, False}


def test_power_is_the_sum_over_every_outcome() -> None:
    items, changed, difference = 24, 0.35, 0.2
    gained = (1 + difference / changed) / 2
    expected = sum(
        reference.binom.pmf(m, items, changed) * reference.binom.pmf(x, m, gained)
        for m in range(items + 1)
        for x in range(m + 1)
        if stats.mcnemar_exact(x, m - x) <= 0.05
    )
    assert stats.mcnemar_power(items, changed, difference) == pytest.approx(expected)
    assert stats.mcnemar_power(items, changed, 0.0) <= 0.05


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    smallest = stats.mcnemar_detectable(300, 0.1)
    assert smallest is not None
    assert stats.mcnemar_power(300, 0.1 + smallest, smallest) == pytest.approx(0.8, abs=0.01)
    assert stats.mcnemar_detectable(5, 0.1) is None, "five items cannot reach 5 % by any outcome"
    from statsmodels.stats.power import TTestPower

    textbook = TTestPower().solve_power(nobs=200, power=0.8, alpha=0.05)
    assert stats.detectable(1 / math.sqrt(200), 200) == pytest.approx(textbook, rel=0.01)
    assert stats.detectable(0.1, 5) is None


def test_copies_of_items_are_not_evidence() -> None:
    """Each item written eight times into its cluster says what it says once."""
    rng = np.random.default_rng(2)
    before, after = (rng.random(40) < 0.4) * 1.0, (rng.random(40) < 0.65) * 1.0
    once = stats.compare(before, after, clusters=None, metric="right")
    copies = stats.compare(before.repeat(8), after.repeat(8), clusters=np.arange(40).repeat(8), metric="right", seed=1)
    assert copies.p_value == pytest.approx(once.p_value)
    assert copies.high - copies.low >= once.high - once.low
    ignoring = stats.compare(before.repeat(8), after.repeat(8), clusters=None, metric="right")
    assert ignoring.p_value < once.p_value / 10
    assert stats.effective_items(before.repeat(8), np.arange(40).repeat(8)) == pytest.approx(40, rel=0.05)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 5))
def test_interval_holds_the_estimate_and_agrees_with_the_exact_test(seed: int, clusters: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = (rng.random((2, clusters * size)) < 0.5) * 1.0
    for kind in ("binary", "real"):
        found = stats.compare(
            before, after, clusters=np.arange(clusters).repeat(size), metric="m", kind=kind, resamples=500
        )
        assert found.low <= found.delta + 1e-9
        assert found.high >= found.delta - 1e-9
        assert found.delta == pytest.approx(found.after - found.before)
        if found.low > 0 or found.high < 0:
            assert found.p_value < 0.05


def test_the_same_seed_gives_the_same_figures_in_any_order_of_cluster_names() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random((2, 90))
    first = stats.compare(before, after, clusters=[f"a{i % 20}" for i in range(90)], metric="m", kind="real")
    again = stats.compare(before, after, clusters=[f"z{-(i % 20)}" for i in range(90)], metric="m", kind="real")
    assert first == again


def test_too_little_to_say_is_said() -> None:
    one = stats.compare([0.2], [0.9], clusters=None, kind="real", metric="m")
    assert (one.low, one.high, one.p_value, one.minimum_detectable) == (-math.inf, math.inf, 1.0, None)
    assert Comparison.model_validate_json(one.model_dump_json()) == one
    four = stats.compare(np.zeros(40), np.ones(40), clusters=np.arange(40) // 10, metric="m")
    assert four.p_value == pytest.approx(0.125)
    assert four.low <= 0
    assert stats.estimate(np.ones(30), clusters=None).low == pytest.approx(stats.wilson(30, 30)[0])
    nothing = stats.compare(np.zeros(50), np.zeros(50), clusters=None, metric="m")
    assert nothing.low < 0 < nothing.high, "no change in fifty items is not proof of no change"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"before": [1, 0], "after": [1]}, "before has 2 items and after has 1"),
        ({"before": [1, 0.5], "after": [1, 0]}, "not right/wrong"),
        ({"before": [1, np.nan], "after": [1, 0]}, "missing or non-finite"),
        ({"before": [], "after": []}, "non-empty"),
        ({"before": [1, 0], "after": [1, 0], "clusters": ["a"]}, "2 items have 1 cluster ids"),
        ({"before": [1, 0], "after": [1, 0], "kind": "ratio"}, "needs weights"),
        ({"before": [1, 0], "after": [1, 0], "kind": "ratio", "weights": [0, 0]}, "above zero"),
        ({"before": [1, 0], "after": [1, 0], "margin": -0.1}, "margin"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stats.compare(**{"clusters": None, "metric": "m", **arguments})
