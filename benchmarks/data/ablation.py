"""How often an ablation is wrong and what it can see, beside two simpler ways to decide, on simulated tables of losses.

    python benchmarks/data/ablation.py [--runs 2000]

Each table has two arms, seeds and clusters of documents of uneven size, with the variances named in its row, in units
of the standard error that each alone would give the difference. The ways:

- both        as `pretrain.ablate` decides: seeds nested in arms, clusters paired, Satterthwaite's degrees of freedom
- seeds       Student's t of the arms' losses by seed, as if the held-out text were all there is
- documents   Student's t of paired clusters after the mean over seeds, as if there were no other seeds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import ttest_1samp, ttest_ind

from liuyi.pretrain.ablate.difference import Floats, difference

CASES = (
    # seeds, clusters, sd of seeds, sd of clusters, sd of both
    (3, 12, 1.0, 0.0, 0.3),
    (3, 12, 0.3, 1.0, 0.3),
    (3, 100, 1.0, 0.3, 0.3),
    (3, 100, 0.3, 1.0, 0.3),
    (5, 100, 1.0, 1.0, 1.0),
    (2, 100, 1.0, 0.3, 0.3),
)
LARGE = 4.0
"""The true difference of the rows on power, in standard errors."""


def table(
    rng: np.random.Generator, seeds: int, clusters: int, seed: float, text: float, both: float, delta: float
) -> tuple[Floats, Floats, Floats]:
    """Bits `[seeds, clusters]` of two arms, and bytes `[clusters]`."""
    sizes = rng.lognormal(8, 1, clusters)
    even = np.sqrt((sizes**2).sum()) / sizes.sum()
    hardness = 2 + rng.normal(0, 3, clusters)
    arms = [
        sizes
        * (
            hardness
            + shift
            + rng.normal(0, seed * np.sqrt(seeds / 2), (seeds, 1))
            + rng.normal(0, text / even / np.sqrt(2), clusters)
            + rng.normal(0, both / even * np.sqrt(seeds / 2), (seeds, clusters))
        )
        for shift in (0.0, delta)
    ]
    return arms[0], arms[1], sizes


def by_seeds(before: Floats, after: Floats, sizes: Floats) -> float:
    return float(ttest_ind(after.sum(axis=1) / sizes.sum(), before.sum(axis=1) / sizes.sum()).pvalue)


def by_documents(before: Floats, after: Floats, sizes: Floats) -> float:
    change = (after - before).mean(axis=0)
    centred = (change - sizes * change.sum() / sizes.sum()) * len(sizes) / sizes.sum()
    return float(ttest_1samp(centred + change.sum() / sizes.sum(), 0).pvalue)


WAYS: dict[str, Callable[[Floats, Floats, Floats], float]] = {
    "both": lambda *given: difference(*given).p_value,
    "seeds": by_seeds,
    "documents": by_documents,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated tables a row")
    runs = parser.parse_args().runs
    print(
        "| seeds | clusters | sd: seeds, clusters, both | " + " | ".join(f"wrong, {way}" for way in WAYS) + " | power |"
    )
    print("|---|---|---|" + "---:|" * (len(WAYS) + 1))
    for seeds, clusters, *spread in CASES:
        rng = np.random.default_rng(1)
        wrong = dict.fromkeys(WAYS, 0)
        seen = 0
        for _ in range(runs):
            given = table(rng, seeds, clusters, *spread, 0.0)
            for way, p_value in WAYS.items():
                wrong[way] += p_value(*given) < 0.05
            error = float(np.sqrt(np.sum(np.square(spread))))
            seen += difference(*table(rng, seeds, clusters, *spread, LARGE * error)).p_value < 0.05
        shares = " | ".join(f"{count / runs:.1%}" for count in wrong.values())
        print(f"| {seeds} | {clusters} | {', '.join(map(str, spread))} | {shares} | {seen / runs:.0%} |", flush=True)


if __name__ == "__main__":
    main()
