"""Which numbers occur several times in a corpus: counted exactly, and some of them at a time, to bound the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Numbered = tuple[Hashes, Ints]
"""Numbers, and the document of each, ascending."""

NUMBERS_AT_ONCE = 1 << 24
"""Counting these takes some 600 MB."""


def repeated(
    read: Callable[[], Iterator[Numbered]], total: int, at_least: int, at_once: int = NUMBERS_AT_ONCE
) -> tuple[Hashes, Ints, Ints]:
    """The numbers that occur `at_least` times, ascending; the document in which each occurs first; how often it does.

    `read` gives all `total` numbers in the order of the documents, and is called once for each `at_once` of them.
    """
    passes = max(1, -(-total // at_once))
    found: list[tuple[Hashes, Ints, Ints]] = []
    for number in range(passes):
        mine = np.uint64(number)
        parts = [_of_pass(part, mine, passes) for part in read()]
        values = np.concatenate([np.zeros(0, np.uint64), *(part for part, _ in parts)])
        owners = np.concatenate([np.zeros(0, np.int64), *(owner for _, owner in parts)])
        distinct, first, counts = np.unique(values, return_index=True, return_counts=True)
        often = counts >= at_least
        found.append((distinct[often], owners[first[often]], counts[often]))
    hashes, first_in, often_in = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(hashes)
    return hashes[order], first_in[order], often_in[order]


def _of_pass(part: Numbered, number: np.uint64, passes: int) -> Numbered:
    if passes == 1:
        return part
    chosen = part[0] % np.uint64(passes) == number
    return part[0][chosen], part[1][chosen]
