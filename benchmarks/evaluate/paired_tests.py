"""How often the paired tests err: false positives and coverage on simulated answers whose truth is known.

    python benchmarks/evaluate/paired_tests.py            # 2,000 samples a row, a few minutes
    python benchmarks/evaluate/paired_tests.py --runs 200

Answers are right or wrong before and after; the items of a cluster share how hard they are, and a stage may help one
cluster and harm another (`spread`), which is what makes items of a cluster one finding rather than many. Beside the
test that Liuyi uses stand McNemar's test on items, as if they were independent, and the percentile bootstrap of items.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import ndtr

from liuyi.evaluate import stats

DESIGNS = [
    # clusters, items a cluster (mean), ability, true shift, spread
    (20, 10, 0.0, 0.0, 1.0),
    (60, 5, 0.0, 0.0, 0.5),
    (10, 20, 0.0, 0.0, 1.0),
    (200, 1, 0.0, 0.0, 0.0),
    (20, 10, -1.5, 0.5, 0.7),
    (60, 5, 0.0, 0.5, 0.5),
    (200, 1, 1.5, 0.2, 0.0),
]


def answers(
    rng: np.random.Generator, clusters: int, size: int, ability: float, shift: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cluster, before, after) of one sample."""
    sizes = rng.integers(1, 2 * size, size=clusters) if size > 1 else np.ones(clusters, dtype=int)
    cluster = np.arange(clusters).repeat(sizes)
    shared, old, new = rng.normal(size=(3, clusters)) * spread
    item, noise_before, noise_after = rng.normal(size=(3, len(cluster)))
    before = ability + (shared + old)[cluster] + 0.7 * (item + noise_before) > 0
    after = ability + shift + (shared + new)[cluster] + 0.7 * (item + noise_after) > 0
    return cluster, before * 1.0, after * 1.0


def item_bootstrap(rng: np.random.Generator, difference: np.ndarray) -> tuple[float, float]:
    """The percentile interval that takes every item for independent."""
    draws = difference[rng.integers(0, len(difference), size=(1000, len(difference)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print one line a design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="samples a design [2000]")
    runs = parser.parse_args().runs
    print("clusters  items  true diff   found: ours  on items   truth inside 95 %: ours  item bootstrap")
    for clusters, size, ability, shift, spread in DESIGNS:
        rng = np.random.default_rng(1)
        scale = np.sqrt(2 * spread**2 + 2 * 0.7**2)
        truth = float(ndtr((ability + shift) / scale) - ndtr(ability / scale))
        found, on_items, inside, inside_items = 0, 0, 0, 0
        for _ in range(runs):
            cluster, before, after = answers(rng, clusters, size, ability, shift, spread)
            result = stats.compare(before, after, clusters=cluster, metric="right")
            found += result.p_value < 0.05
            inside += result.low <= truth <= result.high
            on_items += stats.mcnemar_exact(int((after > before).sum()), int((after < before).sum())) < 0.05
            low, high = item_bootstrap(rng, after - before)
            inside_items += low <= truth <= high
        print(
            f"{clusters:8}  {clusters * size:5}  {truth:9.3f}   {found / runs:11.1%}  {on_items / runs:8.1%}"
            f"   {inside / runs:23.1%}  {inside_items / runs:14.1%}"
        )


if __name__ == "__main__":
    main()
