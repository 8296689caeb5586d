"""Texts to hashed features: which words and pairs of neighbouring words occur, each in one of 2^18 buckets.

They are the features of fastText's classifier (Joulin et al. 2016, arXiv 1607.01759) with each Han character a word, so
that Chinese needs no segmenter. There is no vocabulary to keep: the place of a feature is its hash (Weinberger et al.
2009, arXiv 0902.2206). How often a feature occurs does not count: scores of long and short documents compare then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from liuyi.core.words import Words, blocks, words_of

BUCKET_BITS = 18
BUCKETS = 1 << BUCKET_BITS
MAX_CHARS = 100_000
"""A document is judged by its beginning, up to so many characters."""

_TEXTS_AT_ONCE = 1 << 12
"""So few that a text's number and a bucket fit into 32 bits, which sort four times as fast as 64."""

Buckets = NDArray[np.uint32]


def features(texts: Sequence[str]) -> sparse.csr_matrix:
    """[texts, BUCKETS] float32, each row of length 1, its features alike; a row of zeros where a text has no word."""
    heads = [text[:MAX_CHARS] for text in texts]
    rows = [
        _rows(heads[start : start + _TEXTS_AT_ONCE][here])
        for start in range(0, len(heads), _TEXTS_AT_ONCE)
        for here in blocks(heads[start : start + _TEXTS_AT_ONCE])
    ]
    return sparse.vstack([sparse.csr_matrix((0, BUCKETS), dtype=np.float32), *rows], format="csr")


def places(words: Words) -> tuple[Buckets, Buckets, NDArray[np.int64]]:
    """The bucket of each word; the bucket of each pair of neighbours, and the number of its first word."""
    pairs, first = words.runs(2)
    return _bucket(words.hashes), _bucket(pairs), first


def _bucket(hashes: NDArray[np.uint64]) -> Buckets:
    return (hashes >> np.uint64(64 - BUCKET_BITS)).astype(np.uint32)


def _rows(texts: Sequence[str]) -> sparse.csr_matrix:
    words = words_of(texts)
    single, pairs, first = places(words)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint32), np.diff(words.offsets)) << np.uint32(BUCKET_BITS)
    keys = np.concatenate([owner | single, owner[first] | pairs])
    keys.sort()
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    counts = np.bincount(keys >> np.uint32(BUCKET_BITS), minlength=len(texts))
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32)
    columns = (keys & np.uint32(BUCKETS - 1)).astype(np.int32)
    return sparse.csr_matrix((values, columns, np.append(0, np.cumsum(counts))), shape=(len(texts), BUCKETS))
