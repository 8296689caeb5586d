"""Embeddings of texts: the mean of the final hidden states over a text's tokens (mean pooling).

    embedder = Embedder(runner, pool)
    embedder.add(7, [[15, 9, 2], [4]])
    while embedder.has_work:
        for id, vectors in embedder.step(): ...     # [[hidden] of each text]

One step reads one chunk of one text, so that whoever generates beside it is never held up for long. The blocks of
keys and values that a text needs are taken from those that generation uses, and given back after its last token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from liuyi.infer.blocks import BlockPool, blocks_for
from liuyi.infer.runner import Batch, Runner, ids

Vector = NDArray[np.float32]


@dataclass
class _Job:
    """Texts that were asked for together, and what has been made of them."""

    id: int
    texts: Sequence[Sequence[int]]
    vectors: list[Vector] = field(default_factory=list)


class Embedder:
    """Embeds texts one after the other over a runner and its blocks."""

    def __init__(self, runner: Runner, pool: BlockPool, chunk_tokens: int = 512) -> None:
        self._runner = runner
        self._pool = pool
        self._chunk_tokens = chunk_tokens
        self._jobs: deque[_Job] = deque()
        self._blocks: list[int] = []
        self._read = 0
        self._sum: NDArray[np.float64] = np.zeros(runner.config.hidden_size)

    @property
    def has_work(self) -> bool:
        """Whether texts wait."""
        return bool(self._jobs)

    def add(self, id: int, texts: Sequence[Sequence[int]]) -> None:
        """Put texts, each at least one token and at most what all blocks hold, into the queue."""
        self._jobs.append(_Job(id, texts))

    def cancel(self, ids: Collection[int]) -> None:
        """Drop jobs."""
        if self._jobs and self._jobs[0].id in ids:
            self._let_go()
        self._jobs = deque(job for job in self._jobs if job.id not in ids)

    def step(self) -> list[tuple[int, list[Vector]]]:
        """Read the next chunk; the vectors, [hidden] float32 for each text, of the job that it completed.

        Nothing is read while too few blocks are free.
        """
        if not self._jobs:
            return []
        job = self._jobs[0]
        text = job.texts[len(job.vectors)]
        if not self._blocks:
            needed = blocks_for(len(text))
            if needed > self._pool.available:
                return []
            self._blocks = [self._pool.take() for _ in range(needed)]
        count = min(self._chunk_tokens, len(text) - self._read)
        hidden = self._runner.hidden(
            Batch(
                tokens=ids(text[self._read : self._read + count]),
                counts=ids([count]),
                lengths=ids([self._read]),
                tables=ids([self._blocks]),
                rows=ids(np.arange(count)),
                adapters=ids([-1]),
            )
        )
        self._sum += hidden.numpy().sum(axis=0, dtype=np.float64)
        self._read += count
        if self._read == len(text):
            job.vectors.append((self._sum / len(text)).astype(np.float32))
            self._let_go()
        if len(job.vectors) < len(job.texts):
            return []
        self._jobs.popleft()
        return [(job.id, job.vectors)]

    def _let_go(self) -> None:
        self._pool.release(self._blocks)
        self._blocks, self._read = [], 0
        self._sum[:] = 0
