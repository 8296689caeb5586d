"""Which documents may be near duplicates of one another: connected by bands in which their signatures agree.

What is held in memory is some 90 bytes a document, whatever the length of the texts: the keys of the bands lie in a
file, and one band is sorted at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuyi.data.dedup.minhash import HASHES, Signatures, band_keys, bands_for
from liuyi.data.dedup.ragged import changes

Ints = NDArray[np.int64]

DOUBT = 4.5
"""Standard errors by which an estimate may fall short of the threshold and the pair still be compared in full: one
true pair in 300,000 falls short of that."""
_NEIGHBOURS = 63
"""How many others of a bucket a document is compared with: those next to it in length, as near duplicates are."""
_DOCUMENTS_AT_ONCE = 1 << 14


def least_agreement(threshold: float) -> float:
    """The share of places in which signatures must agree for documents to be compared in full."""
    return threshold - DOUBT * float(np.sqrt(threshold * (1 - threshold) / HASHES))


def candidate_groups(signatures: Signatures, order: Ints, threshold: float, workdir: Path) -> list[Ints]:
    """Groups of two or more documents that are linked by signatures of about `threshold` similarity.

    `order` holds the numbers of the documents to look at, those first that are to stay; so do the groups.
    """
    bands, rows = bands_for(threshold)
    path = workdir / "bands"
    try:
        keys = np.memmap(path, np.uint64, "w+", shape=(bands, len(order)))
        for start in range(0, len(order), _DOCUMENTS_AT_ONCE):
            part = slice(start, start + _DOCUMENTS_AT_ONCE)
            keys[:, part] = band_keys(signatures[order[part]], bands, rows)
        groups = Components(len(order))
        for band in keys:
            for one, other in _neighbours(np.asarray(band), groups):
                similar = _agreement(signatures, order[one], order[other]) >= least_agreement(threshold)
                groups.join(one[similar], other[similar])
    finally:
        path.unlink(missing_ok=True)
    return [order[group] for group in groups.of_several()]


class Components:
    """Connected components of a growing graph over the numbers below `size`; the smallest number names each."""

    def __init__(self, size: int) -> None:
        self.labels = np.arange(size)

    def join(self, one: Ints, other: Ints) -> None:
        """Add the edges between `one` and `other`, [edges] each."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not len(one):
            return
        nodes, places = np.unique(self.labels[np.concatenate([one, other])], return_inverse=True)
        edges = (np.ones(len(one), bool), (places[: len(one)], places[len(one) :]))
        _, component = connected_components(coo_matrix(edges, shape=(len(nodes), len(nodes))), directed=False)
        _, smallest = np.unique(component, return_index=True)
        renamed = np.arange(len(self.labels))
        renamed[nodes] = nodes[smallest[component]]
        self.labels = renamed[self.labels]

    def of_several(self) -> list[Ints]:
        """The components of more than one number, each ascending."""
        members = np.argsort(self.labels, kind="stable")
        begins = changes(self.labels[members])
        counts = np.diff(np.append(begins, len(members)))
        several = counts > 1
        return [members[at : at + count] for at, count in zip(begins[several], counts[several], strict=True)]


def _neighbours(keys: NDArray[np.uint64], groups: Components) -> Iterator[tuple[Ints, Ints]]:
    """Pairs with the same key that are not yet in one group, first next neighbours, then those further apart."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    places = np.arange(len(order))
    for distance in range(1, _NEIGHBOURS + 1):
        places = places[: np.searchsorted(places, len(order) - distance)]
        places = places[keys[places] == keys[places + distance]]
        if not len(places):
            return
        one, other = order[places], order[places + distance]
        apart = groups.labels[one] != groups.labels[other]
        yield one[apart], other[apart]


def _agreement(signatures: Signatures, one: Ints, other: Ints) -> NDArray[np.float64]:
    found = np.empty(len(one))
    for start in range(0, len(one), _DOCUMENTS_AT_ONCE):
        part = slice(start, start + _DOCUMENTS_AT_ONCE)
        found[part] = (signatures[one[part]] == signatures[other[part]]).mean(axis=1)
    return found
