"""What was decided over a corpus: some 50 bytes a document, whatever its texts take."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.data.select.rules import KEPT

Ints = NDArray[np.int64]


class Numbered:
    """Texts that occur again and again, as numbers: each distinct one is held once, in the order of its coming."""

    def __init__(self, *first: str) -> None:
        self.names = list(first)
        self.number_of = {name: number for number, name in enumerate(first)}
        self._parts = [np.zeros(0, np.int32)]

    def add(self, values: Iterable[str | None]) -> NDArray[np.int32]:
        """Append texts; gives their numbers. Null is the empty text."""
        known = self.number_of
        found = []
        for value in values:
            number = known.setdefault(value or "", len(known))
            if number == len(self.names):
                self.names.append(value or "")
            found.append(number)
        self._parts.append(np.array(found, np.int32))
        return self._parts[-1]

    @property
    def numbers(self) -> NDArray[np.int32]:
        """[rows] the number of each text."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def totals(self, weights: NDArray[np.generic]) -> Ints:
        """[names] the sum of `weights`, one a row, for each distinct text."""
        return np.bincount(self.numbers, weights, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True)
class Decision:
    """A decision over a corpus; arrays have one row a document, in the order of the corpus."""

    reasons: Numbered
    """Why each was dropped; number 0 is `KEPT`."""
    held_out: NDArray[np.bool_]
    """[documents] whether its cluster is held out."""
    figures: Mapping[str, Ints]
    """[documents] `bytes` and `chars` of each text, `pii` and `repeated`: how many spans it has."""
    places: Mapping[str, Numbered]
    """`source`, `license`, `cluster`, `lang` and `duplicate_kind` of each document."""
    samples: Mapping[str, list[int]]
    """The first documents of each reason, in the order of a hash of their ids."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[documents] whether each stays, to train on or held out."""
        return np.asarray(self.reasons.numbers == self.reasons.number_of[KEPT])


class Samples:
    """The `count` documents of each reason whose ids have the smallest hashes: a choice that no order changes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = 0
        self._smallest: dict[int, list[tuple[bytes, int]]] = {}

    def add(self, reasons: NDArray[np.int32], ids: Iterable[str]) -> None:
        """Take further documents into account."""
        hashes = [hashlib.sha256(id.encode()).digest() for id in ids]
        for reason in np.unique(reasons).tolist():
            rows = np.flatnonzero(reasons == reason).tolist()
            fresh = [(hashes[row], self._seen + row) for row in rows]
            self._smallest[reason] = heapq.nsmallest(self._count, [*self._smallest.get(reason, ()), *fresh])
        self._seen += len(hashes)

    def rows(self, reasons: Numbered) -> dict[str, list[int]]:
        """The numbers of the chosen documents, by reason."""
        return {reasons.names[reason]: [row for _, row in chosen] for reason, chosen in self._smallest.items()}
