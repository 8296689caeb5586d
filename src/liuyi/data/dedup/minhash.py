"""MinHash signatures (Broder 1997) and their bands (Leskovec, Rajaraman, Ullman, ch. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from liuyi.core.words import blocks
from liuyi.data.dedup.shingles import shingles

HASHES = 112

Signatures = NDArray[np.uint32]
"""[documents, hashes]"""

_RECALL = 0.98
_AT_ONCE = 2048
"""Shingles hashed together: 112 times as many 32-bit numbers fit the second-level cache."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_generator = np.random.Generator(np.random.PCG64(1))
_MULTIPLIERS = _generator.integers(0, 1 << 32, (HASHES, 1), np.uint32) | np.uint32(1)
_ADDENDS = _generator.integers(0, 1 << 32, (HASHES, 1), np.uint32)


def signatures(texts: Sequence[str]) -> Signatures:
    """The signature of each text: the smallest values of its shingles under 112 permutations of the 32-bit numbers.

    Shingles are hashed already, so the permutations may be as cheap as a · x + b modulo 2³² with an odd a. Two texts
    agree in each place with a probability that is their Jaccard similarity.
    """
    found = np.full((len(texts), HASHES), np.iinfo(np.uint32).max, np.uint32)
    for block in blocks(texts):
        keys, bounds = shingles(texts[block])
        values = (keys >> np.uint64(32)).astype(np.uint32)
        for row, start, end in zip(found[block], bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            for at in range(start, end, _AT_ONCE):
                permuted = _MULTIPLIERS * values[at : min(at + _AT_ONCE, end)]
                permuted += _ADDENDS
                np.minimum(row, permuted.min(axis=1), out=row)
    return found


def bands_for(jaccard: float, hashes: int = HASHES) -> tuple[int, int]:
    """(bands, rows) with the longest rows for which a pair of this Jaccard similarity is found with 98 % probability.

    A pair of similarity s meets in at least one band with probability 1 − (1 − s^rows)^bands.
    """
    for rows in range(hashes, 0, -1):
        bands = hashes // rows
        if 1 - (1 - jaccard**rows) ** bands >= _RECALL:
            return bands, rows
    return hashes, 1


def band_keys(signatures: Signatures, bands: int, rows: int) -> NDArray[np.uint64]:
    """One number for what each document's signature holds in each band: [bands, documents]."""
    keys = np.zeros((bands, len(signatures)), np.uint64)
    for band, key in enumerate(keys):
        for column in range(band * rows, (band + 1) * rows):
            key ^= signatures[:, column]
            key *= _ODD
            key ^= key >> np.uint64(31)
    return keys
