"""Shingles: the word 5-grams of documents, as numbers. What MinHash samples and Jaccard similarity counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from liuyi.core.words import Words, blocks, run_hashes, words_of

NGRAM_WORDS = 5

Shingles = NDArray[np.uint64]


def shingles(texts: Sequence[str]) -> tuple[Shingles, NDArray[np.int64]]:
    """The shingles of all texts in order, uint64 [shingles], and where those of each begin, [texts + 1].

    A text of fewer than five words has one shingle, all of its words; one without words has none.
    """
    words = words_of(texts)
    keys, first = words.runs(NGRAM_WORDS)
    bounds = np.searchsorted(first, words.offsets)
    counts = np.diff(words.offsets)
    short = np.flatnonzero((counts > 0) & (counts < NGRAM_WORDS))
    if len(short):
        keys = np.insert(keys, bounds[short], [_whole(words, text) for text in short.tolist()])
        bounds[1:] += np.cumsum(np.isin(np.arange(len(texts)), short))
    return keys, bounds


def distinct_shingles(texts: Sequence[str]) -> list[Shingles]:
    """The different shingles of each text, ascending."""
    found: list[Shingles] = []
    for block in blocks(texts):
        keys, bounds = shingles(texts[block])
        found += [_distinct(keys[start:end]) for start, end in pairwise(bounds)]
    return found


def jaccard(one: Shingles, other: Shingles) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of different shingles; 0 where both are empty."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _distinct(keys: Shingles) -> Shingles:
    """What `numpy.unique` gives, in a third of the time: it would hash these hashes."""
    keys = np.sort(keys)
    distinct: Shingles = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    return distinct


def _whole(words: Words, text: int) -> np.uint64:
    hashes = words.hashes[words.offsets[text] : words.offsets[text + 1]]
    ((_, keys),) = run_hashes(hashes, [len(hashes)])
    return np.uint64(keys[0])
