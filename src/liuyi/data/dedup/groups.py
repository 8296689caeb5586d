"""Groups of duplicates over a whole corpus, each with one representative that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.data.dedup.jaccard import Jaccard
from liuyi.data.dedup.minhash import Signatures, bands_for, buckets

_ALL_PAIRS_UP_TO = 64
_LENGTHS_TOLD_APART = 5.0
"""Lengths are about equal within steps of e^(1/5), some 20 %."""


class UnionFind:
    """Disjoint sets of the numbers below `size`; the smallest number of a set speaks for it."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The smallest number in the set of `item`."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)


@dataclass(frozen=True)
class Duplicates:
    """For each document the number of the one that stays in its place."""

    representative: NDArray[np.int64]
    """[documents] own number where the document itself stays."""
    similarity: NDArray[np.float32]
    """[documents] Jaccard similarity to the representative; 1 where it is the same document or an exact duplicate."""
    exact: NDArray[np.bool_]
    """[documents] whether it is an exact duplicate of its representative."""


def by_preference(chars: NDArray[np.int64], urls: Sequence[str], ids: Sequence[str]) -> NDArray[np.int64]:
    """Document numbers, those first that stay: longer ones, of about equally long ones the shorter address, then id.

    A vendored copy is a few characters longer than its original, and has the longer address.
    """
    length = np.round(_LENGTHS_TOLD_APART * np.log(np.maximum(chars, 1)))
    return np.lexsort((np.array(ids), np.array(list(map(len, urls)), np.int64), -length))


def find_duplicates(
    order: NDArray[np.int64],
    fingerprints: Sequence[str],
    signatures: Signatures,
    jaccard: Jaccard,
    *,
    threshold: float,
) -> Duplicates:
    """Group documents that are equal, or linked by pairs whose verified Jaccard similarity reaches `threshold`.

    `order` holds the document numbers by preference: the first of a group stays. Inside a bucket of more than 64
    documents, each is compared with the leaders found so far instead of with all others.
    """
    groups = UnionFind(len(order))
    first_with: dict[str, int] = {}
    for rank, document in enumerate(order):
        groups.join(rank, first_with.setdefault(fingerprints[document], rank))
    unique = np.array(sorted(first_with.values()), np.int64)
    bands, rows = bands_for(threshold)
    for bucket in buckets(signatures[order[unique]], bands, rows):
        _link(unique[bucket], order, groups, jaccard, threshold)
    return _settle(order, groups, fingerprints, jaccard)


def _link(
    ranks: NDArray[np.int64], order: NDArray[np.int64], groups: UnionFind, jaccard: Jaccard, threshold: float
) -> None:
    """Join the documents of one bucket that are similar enough; those already joined are not compared again."""
    few = len(ranks) <= _ALL_PAIRS_UP_TO
    compared: list[int] = []
    for rank in ranks.tolist():
        is_leader = True
        for other in compared:
            if groups.find(rank) == groups.find(other):
                is_leader = False
            elif jaccard.at_least(int(order[rank]), int(order[other]), threshold):
                groups.join(rank, other)
                is_leader = False
            if not (few or is_leader):
                break
        if few or is_leader:
            compared.append(rank)


def _settle(order: NDArray[np.int64], groups: UnionFind, fingerprints: Sequence[str], jaccard: Jaccard) -> Duplicates:
    size = len(order)
    representative = np.empty(size, np.int64)
    similarity = np.ones(size, np.float32)
    exact = np.zeros(size, bool)
    for rank, document in enumerate(order):
        kept = representative[document] = order[groups.find(rank)]
        if kept != document:
            exact[document] = fingerprints[document] == fingerprints[kept]
            if not exact[document]:
                similarity[document] = jaccard.similarity(int(document), int(kept))
    return Duplicates(representative, similarity, exact)
