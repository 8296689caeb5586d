"""Near-duplicate candidates by MinHash (Broder 1997) and banding (Leskovec, Rajaraman, Ullman, ch. 3).

Signatures come from Daft; bands and candidate pairs are made here, over the whole corpus at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASHES = 112
NGRAM_WORDS = 5

Signatures = NDArray[np.uint32]
"""[documents, hashes]"""

_SEED = 1
_RECALL = 0.98
_ODD = np.uint64(0x9E3779B97F4A7C15)


def signature(daft: ModuleType, text: Any) -> Any:
    """The MinHash signature of a text column, as a Daft expression: word 5-grams without case and punctuation.

    Each Han character is a word, so that Chinese has n-grams too.
    """
    functions = daft.functions
    words = functions.regexp_replace(functions.lower(text), r"[^\p{L}\p{M}\p{N}]+", " ")
    words = functions.regexp_replace(words, r"(\p{Han})", " ${1} ")
    words = functions.normalize(words, white_space=True)
    return functions.minhash(words, num_hashes=HASHES, ngram_size=NGRAM_WORDS, seed=_SEED, hash_function="xxhash")


def bands_for(jaccard: float, hashes: int = HASHES) -> tuple[int, int]:
    """(bands, rows) with the longest rows for which a pair of this Jaccard similarity is found with 98 % probability.

    A pair of similarity s meets in at least one band with probability 1 − (1 − s^rows)^bands.
    """
    for rows in range(hashes, 0, -1):
        bands = hashes // rows
        if 1 - (1 - jaccard**rows) ** bands >= _RECALL:
            return bands, rows
    return hashes, 1


def buckets(signatures: Signatures, bands: int, rows: int) -> Iterator[NDArray[np.int64]]:
    """Groups of two or more documents, ascending, whose signatures agree in all rows of a band."""
    for band in range(bands):
        part = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
        keys = np.zeros(len(part), np.uint64)
        for row in range(rows):
            keys = (keys ^ part[:, row]) * _ODD
            keys ^= keys >> np.uint64(31)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, edges):
            if len(group) > 1:
                yield group
