"""Documents that say the same in other words: SemDeDup (Abbas et al., 2023, arXiv 2303.09540).

Documents are vectors, k-means divides them, and within a cluster documents are compared by cosine. Those that go are
taken as in the paper, from the nearest to the centroid: of documents that are alike, the one farthest from it stays, or
the nearest if asked for. Where the paper drops what is alike to anything ahead of it, here it must be alike to a
document that stays, so no chain leads from what goes to a stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from liuyi.data.attributes import attribute_schema, read_groups, rows_by, with_columns
from liuyi.data.corpus import ATTRIBUTES, ROWS_PER_GROUP, count_documents
from liuyi.data.dedup.clusters import cluster, row_blocks, unit
from liuyi.data.dedup.encode import Vectors, encode_group, open_encoder
from liuyi.data.dedup.groups import Duplicates, duplicate_schema
from liuyi.data.dedup.spans import stays
from liuyi.data.parts import map_groups

Ints = NDArray[np.int64]
Keep = Literal["farthest", "nearest"]

_COMPARED_AT_ONCE = 256


@dataclass(frozen=True)
class Alike:
    """When documents say the same."""

    cosine: float
    keep: Keep
    per_cluster: int
    """Documents in a cluster, about."""
    max_tokens: int
    """Tokens of a document that are read."""


def semantic_duplicates(
    source: Path,
    workdir: Path,
    rule: Alike,
    *,
    model: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Duplicates:
    """The documents that go because one that stays says the same, and their cosine.

    Documents that go for another reason already, and those without tokens, are left alone. Vectors lie in a file.
    """
    open_encoder(model, rule.max_tokens)  # so that what is missing is told before any work
    total = count_documents(source)
    representative, similarity = np.arange(total), np.ones(total, np.float32)
    parts = map_groups(
        partial(encode_group, model, rule.max_tokens),
        source,
        ["text"],
        workdir,
        workers=1 if model else workers,  # a model computes on all cores by itself
        on_progress=on_progress,
    )
    path = workdir / "vectors"
    with path.open("wb") as file:
        for table in parts:
            file.writelines(table["vector"].to_pylist())
    vectors = np.memmap(path, np.float32, "r+").reshape(total, -1) if total else np.zeros((0, 1), np.float32)
    able = stays(source, total)
    for part in row_blocks(total):
        vectors[part] = unit(vectors[part])
        able[part] &= np.any(vectors[part] != 0, axis=1)
    for members, centroid in _clusters(vectors, np.flatnonzero(able), rule.per_cluster):
        order = _in_order(vectors, members, centroid, rule.keep)
        kept, alike = alike_to_kept(np.asarray(vectors[order]), rule.cosine)
        representative[order], similarity[order] = order[kept], alike
    kind = np.where(representative == np.arange(total), "", "semantic").astype(object)
    return Duplicates(representative, similarity, kind)


def alike_to_kept(vectors: Vectors, cosine: float) -> tuple[Ints, NDArray[np.float32]]:
    """For each of some unit vectors, the most similar of those before it that stay, and their cosine, if that reaches
    `cosine`: it goes then. Else its own number, and 1.
    """
    kept, best = np.arange(len(vectors)), np.full(len(vectors), -1.0, np.float32)
    for start in range(0, len(vectors), _COMPARED_AT_ONCE):
        similar = vectors[start : start + _COMPARED_AT_ONCE] @ vectors[start:].T
        for number, row in enumerate(similar, start):
            if best[number] < cosine:
                kept[number] = number
                later = slice(number + 1, None)
                better = row[number + 1 - start :] > best[later]
                kept[later][better] = number
                best[later][better] = row[number + 1 - start :][better]
    goes = best >= cosine
    return np.where(goes, kept, np.arange(len(vectors))), np.where(goes, np.minimum(best, 1), np.float32(1))


def _clusters(vectors: Vectors, able: Ints, per_cluster: int) -> list[tuple[Ints, Vectors]]:
    """The documents of each cluster, and its centroid."""
    if not len(able):
        return []
    count = max(1, len(able) // per_cluster)
    chosen = vectors if len(able) == len(vectors) else vectors[able]
    labels, centroids = cluster(chosen, count)
    members = np.argsort(labels, kind="stable")
    borders = np.searchsorted(labels[members], np.arange(1, count))
    return [(able[part], centroid) for part, centroid in zip(np.split(members, borders), centroids, strict=True)]


def _in_order(vectors: Vectors, members: Ints, centroid: Vectors, keep: Keep) -> Ints:
    """The members of a cluster, those first that are to stay."""
    nearness = np.asarray(vectors[members]) @ centroid
    return members[np.argsort(nearness if keep == "farthest" else -nearness, kind="stable")]


def with_duplicates(source: Path, out: Path, found: Duplicates) -> None:
    """Write the corpus `source` to `out` with duplicates added to those that it names already."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = duplicate_schema()
    added = rows_by(ROWS_PER_GROUP, found.attributes(source), schema)

    def joined() -> Iterator[pa.Table]:
        before = rows_by(ROWS_PER_GROUP, read_groups(source, schema.names, ATTRIBUTES), schema)
        for old, new in zip(before, added, strict=True):
            goes = pc.not_equal(new["duplicate_kind"], "")
            yield pa.table([pc.if_else(goes, new[name], old[name]) for name in schema.names], schema=schema)

    measured = set(schema.names) <= set(attribute_schema(source).names)
    with_columns(source, out, schema, joined() if measured else added)
