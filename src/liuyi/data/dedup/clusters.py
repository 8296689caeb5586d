"""k-means on the unit sphere, over vectors that may be a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

_ROUNDS = 12
_SAMPLE_PER_CLUSTER = 64
_ROWS_AT_ONCE = 1 << 13


def cluster(vectors: Vectors, count: int, seed: int = 0) -> tuple[Ints, Vectors]:
    """For each unit vector its cluster, and the clusters' centroids, [count, dimensions], of length 1.

    Centroids are learned from a random sample of 64 vectors for each, in 12 rounds; one that loses all of its vectors
    starts again at the vector that fits its own cluster worst.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    size = min(len(vectors), count * _SAMPLE_PER_CLUSTER)
    sample = np.asarray(vectors[np.sort(generator.choice(len(vectors), size, replace=False))])
    centroids = sample[generator.choice(size, count, replace=False)]
    for _ in range(_ROUNDS):
        nearest, similarity = _nearest(sample, centroids)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, sample)
        empty = np.flatnonzero(np.bincount(nearest, minlength=count) == 0)
        sums[empty] = sample[np.argsort(similarity, kind="stable")[: len(empty)]]
        centroids = unit(sums)
    return _nearest(vectors, centroids)[0], centroids


def unit(vectors: Vectors) -> Vectors:
    """The vectors with length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    made: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return made


def row_blocks(count: int) -> Iterator[slice]:
    """Slices of some thousand rows each."""
    yield from (slice(start, start + _ROWS_AT_ONCE) for start in range(0, count, _ROWS_AT_ONCE))


def _nearest(vectors: Vectors, centroids: Vectors) -> tuple[Ints, NDArray[np.float32]]:
    nearest = np.empty(len(vectors), np.int64)
    similarity = np.empty(len(vectors), np.float32)
    for part in row_blocks(len(vectors)):
        found = np.asarray(vectors[part]) @ centroids.T
        nearest[part] = found.argmax(axis=1)
        similarity[part] = found.max(axis=1)
    return nearest, similarity
