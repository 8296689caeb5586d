"""Score every document of a corpus by a classifier: a stream over row groups, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.attributes import with_columns
from liuyi.data.corpus import ROWS_PER_GROUP
from liuyi.data.parts import map_groups
from liuyi.data.quality.classifier import Classifier

SCHEMA = pa.schema([("quality_score", pa.float32()), ("quality_rank", pa.float32())])


@dataclass(frozen=True)
class Scored:
    """All scores of a corpus."""

    scores: NDArray[np.float32]
    """[documents]"""
    sizes: NDArray[np.int64]
    """[documents] UTF-8 bytes."""


def score(
    source: Path,
    out: Path,
    classifier: Classifier,
    workdir: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Scored:
    """Write the corpus `source` to `out` with two attributes: `quality_score`, and `quality_rank`, the share of the
    corpus' bytes in documents that score higher.

    Held in memory are some 16 bytes a document. The result depends neither on the engine nor on the number of workers.
    """
    parts = map_groups(
        partial(score_group, classifier), source, ["text"], workdir, workers=workers, on_progress=on_progress
    )
    scores, sizes = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for table in parts:
        scores.append(table["score"].to_numpy())
        sizes.append(table["bytes"].to_numpy())
    found = Scored(np.concatenate(scores), np.concatenate(sizes))
    with_columns(source, out, SCHEMA, _columns(found))
    return found


def score_group(classifier: Classifier, group: pa.Table) -> pa.Table:
    """The score and the size of each document of a row group."""
    texts = group["text"].fill_null("")
    sizes = pc.binary_length(texts).cast(pa.int64())
    return pa.table({"score": classifier.score(texts.to_pylist()), "bytes": sizes})


def ranks(scores: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """[documents] the share of all bytes in documents that score higher: 0 for the best, equals alike."""
    levels, level = np.unique(-scores, return_inverse=True)
    held = np.bincount(level, sizes, minlength=len(levels))
    above = np.cumsum(held) - held
    return (above / max(float(held.sum()), 1.0))[level].astype(np.float32)


def _columns(found: Scored) -> Iterator[pa.Table]:
    rank = ranks(found.scores, found.sizes)
    for start in range(0, len(rank), ROWS_PER_GROUP):
        here = slice(start, start + ROWS_PER_GROUP)
        yield pa.table([found.scores[here], rank[here]], schema=SCHEMA)
