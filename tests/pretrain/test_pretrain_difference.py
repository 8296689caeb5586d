"""The decision itself, on tables of losses whose truth is known: how often it is wrong, and what it can see."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.core.holm import holm
from liuyi.pretrain.ablate.difference import Variances, difference
from liuyi.pretrain.ablate.power import detectable, needed, power

RUNS = 800


class Truth:
    """Two arms whose bits per byte differ by `delta`, with variances of one's choice."""

    def __init__(
        self, rng: np.random.Generator, *, seeds: int, clusters: int, seed: float, text: float, both: float
    ) -> None:
        self.rng, self.shape = rng, (seeds, clusters)
        self.seed, self.text, self.both = seed, text * clusters**0.5, both * clusters**0.5

    def losses(self, delta: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng, (seeds, clusters) = self.rng, self.shape
        sizes = rng.lognormal(8, 1, clusters)
        hardness = 2 + rng.normal(0, 0.5, clusters)
        arms = [
            sizes
            * (
                hardness
                + shift
                + rng.normal(0, self.text, clusters) / 2**0.5
                + rng.normal(0, self.seed, (seeds, 1))
                + rng.normal(0, self.both, (seeds, clusters))
            )
            for shift in (0.0, delta)
        ]
        return arms[0], arms[1], sizes


@pytest.mark.parametrize(
    ("seeds", "clusters", "seed", "text", "both"),
    [
        (2, 30, 0.01, 0.01, 0.01),
        (3, 12, 0.01, 0.001, 0.003),
        (3, 30, 0.002, 0.01, 0.003),
        (3, 200, 0.01, 0.0, 0.01),
        (5, 40, 0.0, 0.0, 0.01),
    ],
)
def test_false_alarms_are_as_rare_as_is_said(seeds: int, clusters: int, seed: float, text: float, both: float) -> None:
    """Of tables without a difference at most 5 % are called different (and 7 % at the very most), whichever of seeds
    and text varies; the interval holds zero exactly when the test does not reject."""
    truth = Truth(np.random.default_rng(1), seeds=seeds, clusters=clusters, seed=seed, text=text, both=both)
    wrong = 0
    for _ in range(RUNS):
        found = difference(*truth.losses())
        low, high = found.interval(0.95)
        assert (found.p_value < 0.05) == (low > 0 or high < 0)
        wrong += found.p_value < 0.05
    assert wrong / RUNS < 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5


def test_family_of_comparisons_keeps_its_rate() -> None:
    """Five arms that are all the same, four comparisons: some false alarm in at most 5 % of the experiments."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(RUNS // 2):
        truth = Truth(rng, seeds=3, clusters=20, seed=0.01, text=0.0, both=0.01)
        base, _, sizes = truth.losses()
        hardness = base.mean(axis=0)
        arms = [hardness + sizes * (rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.04, (3, 20))) for _ in range(5)]
        p_values = [difference(arms[0], arm, sizes).p_value for arm in arms[1:]]
        wrong += min(holm(p_values)) < 0.05
    assert wrong / (RUNS // 2) < 0.05 + 3 * (0.05 * 0.95 / (RUNS // 2)) ** 0.5


def test_power_is_what_is_said() -> None:
    """The share of simulated experiments that find a difference is the power of the true variances."""
    seeds, clusters, spread = 4, 100, 0.01
    truth = Truth(np.random.default_rng(3), seeds=seeds, clusters=clusters, seed=spread, text=0.002, both=0.0)
    found = [difference(*truth.losses(0.02)) for _ in range(RUNS)]
    seen = np.mean([one.p_value < 0.05 for one in found])
    variances = Variances(seed=2 * spread**2, clusters=0.002**2, freedom_of_seed=2.0, even_clusters=clusters / np.e)
    assert seen == pytest.approx(power(0.02, variances, seeds), abs=0.07)
    assert np.mean([one.delta for one in found]) == pytest.approx(0.02, abs=0.002)


def test_power_agrees_with_another_library() -> None:
    """Without variance between clusters this is the two-sample t test of the seeds' losses."""
    variances = Variances(seed=2.0, clusters=0.0, freedom_of_seed=2.0, even_clusters=50)
    for seeds, delta in ((3, 2.0), (8, 1.0), (20, 0.5)):
        theirs = sm.stats.tt_ind_solve_power(effect_size=delta, nobs1=seeds, alpha=0.05)
        assert power(delta, variances, seeds) == pytest.approx(theirs, abs=0.01)


def test_one_text_for_all_is_welchs_test() -> None:
    """Where every cluster says the same, only seeds vary, and the p-value is Welch's."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(4)
    sizes = np.full(30, 1000.0)
    before, after = (sizes * (2 + rng.normal(0, spread, (4, 1))) for spread in (0.01, 0.03))
    theirs = ttest_ind(after[:, 0], before[:, 0], equal_var=False).pvalue
    assert difference(before, after, sizes).p_value == pytest.approx(theirs, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 30))
def test_difference_is_the_ratio_of_sums(seed: int, seeds: int, clusters: int) -> None:
    """Whatever the table: the figures are bits over bytes, and swapping the arms only turns the sign."""
    truth = Truth(np.random.default_rng(seed), seeds=seeds, clusters=clusters, seed=0.1, text=0.1, both=0.1)
    before, after, sizes = truth.losses(0.1)
    one, other = difference(before, after, sizes), difference(after, before, sizes)
    assert one.before == pytest.approx((before.sum(axis=1) / sizes.sum()).mean())
    assert one.delta == pytest.approx(-other.delta)
    assert one.p_value == pytest.approx(other.p_value)


def test_what_would_decide() -> None:
    """More seeds where seeds vary, more text where text does; and with that the power is there, with less it is not."""
    rng = np.random.default_rng(5)
    by_seed = difference(*Truth(rng, seeds=3, clusters=100, seed=0.02, text=0.0, both=0.001).losses(0.02))
    need = needed(by_seed)
    assert need is not None
    assert need.text == 1
    assert power(by_seed.delta, by_seed.variances, need.seeds) >= 0.8
    if need.seeds > 3:
        assert power(by_seed.delta, by_seed.variances, need.seeds - 1) < 0.8
    assert power(detectable(by_seed), by_seed.variances, 3) == pytest.approx(0.8, abs=1e-3)
    text = Variances(seed=1e-8, clusters=4e-4, freedom_of_seed=2.0, even_clusters=30)
    assert power(0.02, text, 64) < 0.5
    assert power(0.02, text, 3, 8) > 0.8


def test_too_little_is_said() -> None:
    with pytest.raises(DataError, match="1 seeds and 5 clusters"):
        difference(np.ones((1, 5)), np.ones((1, 5)), np.ones(5))
