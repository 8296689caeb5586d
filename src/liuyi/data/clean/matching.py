"""Many words looked for at once in many texts (Aho and Corasick 1975), with no need of spaces between words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from liuyi.data.clean.batch import Batch, Ints

_BORDER = "\0"
"""Stands between texts; no word holds it, so that none is found across two of them."""


@dataclass(frozen=True)
class Found:
    """Places where a word stands, in the order of the texts."""

    owner: Ints
    """[places] the document."""
    word: Ints
    """[places] which of the words."""
    start: Ints
    """[places] its first character, counted within `Batch.points`."""
    chars: Ints
    """[places] how long it is."""


class Words:
    """Words to look for; none is empty. Case counts."""

    def __init__(self, words: Iterable[str], *, overlapping: bool = False) -> None:
        """With `overlapping` each occurrence of each word is found; else the first and longest, and from its end on."""
        from ahocorasick_rs import AhoCorasick, MatchKind

        self._overlapping = overlapping
        kind = MatchKind.Standard if overlapping else MatchKind.LeftmostLongest
        self._automaton: Any = AhoCorasick(list(words), matchkind=kind)

    def find(self, batch: Batch) -> Found:
        """Where the words stand in the texts of a batch."""
        text = _BORDER.join(batch.strings)
        places = self._automaton.find_matches_as_indexes(text, overlapping=self._overlapping)
        word, start, end = np.array(places, np.int64).reshape(-1, 3).T
        owner = np.searchsorted(np.cumsum(batch.chars + 1), start, side="right")
        return Found(owner, word, start - owner, end - start)
