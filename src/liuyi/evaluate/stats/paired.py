"""Is after different from before? Tests on the same items, by clusters.

One idea serves every kind of score. If a stage changed nothing, "before" and "after" of a cluster are
interchangeable, so the sign of the cluster's summed difference is a fair coin. The p-value is the share of
all sign assignments whose total is at least as far from zero as the one seen.

- Right/wrong, every item its own cluster: this *is* McNemar's exact test (the sign test on the items that changed).
- Right/wrong, clusters of several items: the same test on clusters; the distribution over all assignments is
  computed exactly, by convolution, since the sums are whole numbers.
- Real scores: all assignments where these are few, a seeded sample of them where they are many.

McNemar's test on clustered items would take ten sentences of one template for ten independent findings; the
clusters decide which test is right, never the p-value.
"""

from __future__ import annotations

import numpy as np

from liuyi.evaluate.stats.clusters import Floats, Ints

FLIPS = 20_000
_ENUMERATED = 14


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p-value of `gained` items turned right against `lost` turned wrong (McNemar, 1947).

    The binomial test of the changed items against one half.
    """
    from scipy.special import bdtr

    changed = gained + lost
    return min(1.0, 2 * float(bdtr(min(gained, lost), changed, 0.5))) if changed else 1.0


def flip_whole_sums(sums: Ints) -> float:
    """Exact two-sided sign-flip p-value of whole-numbered cluster sums, int64 [clusters].

    Equals `mcnemar_exact` where every sum is −1, 0 or 1.
    """
    sizes = np.abs(sums[sums != 0])
    if len(sizes) == 0:
        return 1.0
    if sizes.max() == 1:
        gained = int((sums > 0).sum())
        return mcnemar_exact(gained, len(sizes) - gained)
    reach = int(sizes.sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in np.sort(sizes):
        moved = np.zeros_like(chance)
        moved[size:] += chance[:-size] / 2
        moved[:-size] += chance[size:] / 2
        chance = moved
    seen = abs(int(sums.sum()))
    totals = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chance[totals >= seen].sum()))


def flip_sums(sums: Floats, *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided sign-flip p-value of real cluster sums, float64 [clusters].

    Exact (all sign assignments) up to 14 clusters that differ; else from `flips` random assignments as
    (1 + as extreme) / (1 + flips), which never understates (Phipson and Smyth, 2010); 1 / (1 + flips) is its floor.
    """
    sums = sums[sums != 0]
    count = len(sums)
    if count == 0:
        return 1.0
    seen = abs(float(sums.sum())) * (1 - 1e-12)
    if count <= _ENUMERATED:
        assignments = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2.0 * assignments - 1) @ sums) >= seen).mean())
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // count)
    extreme = 0
    for start in range(0, flips, rows):
        signs = rng.integers(0, 2, size=(min(rows, flips - start), count), dtype=np.int8)
        extreme += int((np.abs(2.0 * (signs @ sums) - sums.sum()) >= seen).sum())
    return (1 + extreme) / (1 + flips)


def smallest_p(clusters: int) -> float:
    """The smallest p-value that a sign-flip test of `clusters` clusters that all differ can reach: 2 / 2^clusters."""
    return min(1.0, 2.0 ** (1 - clusters))
