"""The exact Jaccard similarity of two documents, over sets of word 5-grams."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from liuyi.data.dedup.minhash import NGRAM_WORDS

Shingles = NDArray[np.uint64]

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Jaccard:
    """Similarities between documents known by number. Shingles are made when first asked for, and the latest are kept.

    `read` gives the text of a document.
    """

    def __init__(self, read: Callable[[int], str], keep_shingles: int = 8_000_000) -> None:
        self._read = read
        self._left = keep_shingles
        self._hash_of: dict[str, int] = {}
        self._kept: OrderedDict[int, Shingles] = OrderedDict()

    def similarity(self, one: int, other: int) -> float:
        """|A ∩ B| / |A ∪ B| of the sets of 5-grams."""
        left, right = self._shingles(one), self._shingles(other)
        shared = len(np.intersect1d(left, right, assume_unique=True))
        return shared / max(1, len(left) + len(right) - shared)

    def at_least(self, one: int, other: int, threshold: float) -> bool:
        """Whether the similarity reaches `threshold`; sizes that cannot are not compared."""
        small, large = sorted((len(self._shingles(one)), len(self._shingles(other))))
        return small >= threshold * large and self.similarity(one, other) >= threshold

    def _shingles(self, document: int) -> Shingles:
        if document in self._kept:
            self._kept.move_to_end(document)
            return self._kept[document]
        made = self._kept[document] = self._make(self._read(document))
        self._left -= len(made)
        while self._left < 0 and len(self._kept) > 1:
            self._left += len(self._kept.popitem(last=False)[1])
        return made

    def _make(self, text: str) -> Shingles:
        known = self._hash_of
        words = _WORD.findall(text.lower())
        for word in set(words):
            if word not in known:
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        codes = np.array([known[word] for word in words], np.uint64)
        size = min(NGRAM_WORDS, max(1, len(codes)))
        keys = np.zeros(max(0, len(codes) - size + 1), np.uint64)
        for place in range(size):
            keys = (keys ^ codes[place : place + len(keys)]) * _ODD
            keys ^= keys >> np.uint64(31)
        return np.unique(keys)
