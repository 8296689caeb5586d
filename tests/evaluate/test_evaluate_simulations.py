"""The statistics on data whose truth is known: false positives, coverage, power, with clusters and without."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from liuyi.evaluate import stats


def clustered_answers(
    rng: np.random.Generator, clusters: int, size: int, base: float, shift: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right/wrong before and after in uneven clusters; a cluster's own ability moves independently before and after."""
    sizes = rng.integers(1, 2 * size, size=clusters)
    cluster = np.arange(clusters).repeat(sizes)
    shared, old, new = rng.normal(size=(3, clusters)) * spread
    item = rng.normal(size=len(cluster))
    noise = rng.normal(size=(2, len(cluster)))
    before = base + shared[cluster] + old[cluster] + 0.7 * (item + noise[0]) > 0
    after = base + shift + shared[cluster] + new[cluster] + 0.7 * (item + noise[1]) > 0
    return cluster, before * 1.0, after * 1.0


def true_difference(base: float, shift: float, spread: float) -> float:
    scale = np.sqrt(2 * spread**2 + 2 * 0.7**2)
    return float(norm.cdf((base + shift) / scale) - norm.cdf(base / scale))


def study(runs: int, clusters: int, size: int, base: float, shift: float, spread: float) -> dict[str, float]:
    """Shares over `runs` samples: found by our test, found when clusters are ignored, truth inside the interval."""
    rng = np.random.default_rng(20)
    truth = true_difference(base, shift, spread)
    found, ignoring, covered = 0, 0, 0
    for _ in range(runs):
        cluster, before, after = clustered_answers(rng, clusters, size, base, shift, spread)
        result = stats.compare(before, after, clusters=cluster, metric="right")
        naive = stats.mcnemar_exact(int((after > before).sum()), int((after < before).sum()))
        found += result.p_value < 0.05
        ignoring += naive < 0.05
        covered += result.low <= truth <= result.high
    return {"found": found / runs, "ignoring": ignoring / runs, "covered": covered / runs}


def test_false_positives_stay_nominal_where_ignoring_clusters_finds_nothing_real() -> None:
    shares = study(300, clusters=20, size=10, base=0.0, shift=0.0, spread=1.0)
    assert shares["ignoring"] > 0.3
    assert shares["found"] < 0.08
    assert shares["covered"] > 0.92


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clusters", "size", "base", "shift", "spread"),
    [
        (20, 10, 0, 0, 1),
        (20, 10, -1.5, 0, 1),
        (60, 5, 0, 0.5, 0.5),
        (10, 20, 0, 0, 1),
        (10, 20, 0, 0.7, 1),
        (150, 1, 1.5, 0.2, 0),
        (40, 8, -2.5, 1, 0.5),
        (5, 30, 0, 0.3, 0.5),
    ],
)
def test_right_or_wrong(clusters: int, size: int, base: float, shift: float, spread: float) -> None:
    shares = study(400, clusters, size, base, shift, spread)
    assert shares["covered"] > 0.92
    if shift == 0:
        assert shares["found"] < 0.065


def ratio_study(runs: int, clusters: int, truth: float, skew: float) -> dict[str, float]:
    """Bits per byte of documents of uneven length in packages with skewed effects of their own."""
    rng = np.random.default_rng(21)
    found, worse, covered, single = 0, 0, 0, 0
    for _ in range(runs):
        cluster = np.arange(clusters).repeat(rng.integers(1, 20, size=clusters))
        size = rng.lognormal(7, 0.7, size=len(cluster))
        effect = (rng.gamma(1 / skew**2, skew**2, size=clusters) - 1) * 0.1
        before = 2 + 0.4 * rng.normal(size=clusters)[cluster]
        after = before + truth + effect[cluster] + 0.1 * rng.normal(size=len(cluster))
        common = {"clusters": cluster, "weights": size, "kind": "ratio", "metric": "bits per byte", "resamples": 1000}
        result = stats.compare(before * size, after * size, better="lower", **common)
        found += result.p_value < 0.05
        covered += result.low <= truth <= result.high
        bounded = stats.compare(before * size, (after + 0.05) * size, better="lower", margin=0.05 + truth, **common)
        worse += bounded.p_value < 0.025
        level = stats.estimate(after * size, **{k: v for k, v in common.items() if k != "metric"})
        single += level.low <= 2 + truth <= level.high
    return {"found": found / runs, "covered": covered / runs, "worse": worse / runs, "single": single / runs}


@pytest.mark.slow
def test_ratios_of_sums_stay_nominal() -> None:
    shares = ratio_study(200, clusters=20, truth=0.0, skew=0.5)
    assert shares["found"] < 0.09
    assert shares["covered"] > 0.91
    assert shares["worse"] < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clusters", "truth", "skew"), [(8, 0, 0.3), (20, 0, 0.3), (20, 0.05, 0.5), (20, 0, 1.0), (50, 0, 1.0), (5, 0, 0.3)]
)
def test_bits_per_byte(clusters: int, truth: float, skew: float) -> None:
    shares = ratio_study(400, clusters, truth, skew)
    assert shares["covered"] > 0.92
    assert shares["single"] > 0.90
    assert shares["worse"] < 0.025 + 0.07 * skew, "one tail suffers where packages' effects are skewed"
    if truth == 0:
        assert shares["found"] < 0.075


@pytest.mark.slow
def test_power_at_the_detectable_difference_is_as_promised() -> None:
    rng = np.random.default_rng(22)
    smallest = stats.mcnemar_detectable(250, 0.2)
    outcomes = rng.multinomial(250, [0.1 + smallest, 0.1, 0.8 - smallest], size=4000)
    assert np.mean([stats.mcnemar_exact(g, lost) < 0.05 for g, lost, _ in outcomes]) == pytest.approx(0.8, abs=0.02)
    clusters, per, found = 30, 6, 0
    error = np.sqrt(0.3**2 / clusters + 1 / (clusters * per))
    shift = stats.detectable(error, clusters)
    for _ in range(1500):
        difference = shift + (0.3 * rng.normal(size=clusters)).repeat(per) + rng.normal(size=clusters * per)
        found += stats.flip_sums(difference.reshape(clusters, per).sum(1), flips=999) < 0.05
    assert found / 1500 == pytest.approx(0.8, abs=0.03)
