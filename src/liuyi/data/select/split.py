"""The held-out split: whole clusters, chosen by a hash of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from liuyi.core.errors import DataError

_AT_LEAST = (4, 2, 1)
"""Into how many clusters the held-out part should fall at least: the first number for which there are enough."""


def held_out_clusters(sizes: Mapping[str, int], fraction: float) -> set[str]:
    """The clusters to hold out, with about `fraction` of the bytes together.

    Clusters are taken in the order of a hash of their names until the fraction is reached, so the choice does not
    depend on a seed and the same cluster is held out again tomorrow. None of them is more than a quarter of what is
    held out, if there are enough as small: intervals over clusters need many. Where all are larger than what is to be
    held out, the smallest alone is taken.
    Raises DataError where there are fewer than two clusters.
    """
    if fraction <= 0:
        return set()
    if len(sizes) < 2:
        raise DataError(
            f"all {'documents belong to one cluster' if sizes else 'documents were dropped'}, so none can be held out",
            hint="set heldout_fraction: 0, or a finer `cluster` in the source",
        )
    wanted = fraction * sum(sizes.values())
    small: list[str] = []
    for parts in _AT_LEAST:
        small = [name for name, size in sizes.items() if size * parts <= wanted]
        if sum(sizes[name] for name in small) >= wanted:
            break
    if not small:
        return {min(sizes, key=lambda name: (sizes[name], name))}
    chosen: set[str] = set()
    taken = 0
    for name in sorted(small, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if taken >= wanted or len(chosen) == len(sizes) - 1:
            break
        chosen.add(name)
        taken += sizes[name]
    return chosen
