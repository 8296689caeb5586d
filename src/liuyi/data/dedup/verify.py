"""Candidates compared in full: their exact Jaccard similarities decide, group by group, on all cores.

The shingles of all candidates are written to a file first, row group by row group, so that no text is read twice and
the memory needed does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuyi.data.corpus import DOCUMENTS
from liuyi.data.dedup.candidates import least_agreement
from liuyi.data.dedup.minhash import Signatures
from liuyi.data.dedup.shingles import Shingles, distinct_shingles, jaccard
from liuyi.data.pool import map_ordered

Ints = NDArray[np.int64]
Settled = tuple[Ints, Ints, NDArray[np.float32]]
"""Documents that go, the document that stays in the place of each, and how similar they are."""

_MOST_COMPARED = 64
"""Documents that one is compared with in full. Pages of one template are alike by thousands, and less than duplicates:
comparing all of them would take hours, and a duplicate is among those whose signatures agree best."""
_MEMBERS_AT_ONCE = 2048
_WORTH_WORKERS = 8192
"""With fewer candidates, starting processes would take longer than comparing."""


@dataclass(frozen=True)
class _Task:
    """Some groups of candidates, one after another; those first in each that are to stay."""

    sizes: list[int]
    signatures: Signatures
    starts: Ints
    """[members] where each one's shingles begin in the file."""
    counts: Ints


def settle(
    folder: Path, groups: Sequence[Ints], signatures: Signatures, threshold: float, workdir: Path, workers: int
) -> Iterator[Settled]:
    """Decide in each group of candidates which documents stay, and which go because one that stays is similar."""
    if not groups:
        return
    members = np.unique(np.concatenate(groups))
    if len(members) < _WORTH_WORKERS:
        workers = 1
    path = workdir / "shingles"
    starts = _write_shingles(folder, members, path, workers)
    parts = list(_parts(groups))
    tasks = (_task(part, members, starts, signatures) for part in parts)
    found = map_ordered(partial(_settle_task, path, threshold), tasks, workers)
    for part, (kept, similarity) in zip(parts, found, strict=True):
        documents = np.concatenate(part)
        goes = kept != np.arange(len(documents))
        yield documents[goes], documents[kept[goes]], similarity[goes]


def choose(signatures: Signatures, shingles: Sequence[Shingles], threshold: float) -> tuple[Ints, NDArray[np.float32]]:
    """For each of some documents, the one that stays in its place (itself, if it stays), and their similarity.

    A document goes if it is similar to one before it that stays; where there are several, to the one whose signature
    agrees best. Of those that stay, it is compared with the 64 whose signatures agree best.
    """
    size = len(signatures)
    kept, similarity = np.arange(size), np.ones(size, np.float32)
    staying = np.empty(size, np.int64)
    table = np.empty_like(signatures)
    count = 0
    for member in range(size):
        agreement = (table[:count] == signatures[member]).mean(axis=1)
        promising = np.flatnonzero(agreement >= least_agreement(threshold))
        for place in promising[np.argsort(-agreement[promising], kind="stable")[:_MOST_COMPARED]]:
            other = staying[place]
            similar = jaccard(shingles[member], shingles[other])
            if similar >= threshold:
                kept[member], similarity[member] = other, similar
                break
        else:
            staying[count], table[count] = member, signatures[member]
            count += 1
    return kept, similarity


def _settle_task(path: Path, threshold: float, task: _Task) -> tuple[Ints, NDArray[np.float32]]:
    file = np.memmap(path, np.uint64, "r")
    kept, similarity = [], []
    start = 0
    for size in task.sizes:
        group = slice(start, start + size)
        places = zip(task.starts[group].tolist(), task.counts[group].tolist(), strict=True)
        shingles = [np.asarray(file[at : at + count]) for at, count in places]
        chosen, similar = choose(task.signatures[group], shingles, threshold)
        kept.append(chosen + start)
        similarity.append(similar)
        start += size
    return np.concatenate(kept), np.concatenate(similarity)


def _parts(groups: Sequence[Ints]) -> Iterator[list[Ints]]:
    part: list[Ints] = []
    size = 0
    for group in groups:
        part.append(group)
        size += len(group)
        if size >= _MEMBERS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _task(part: list[Ints], members: Ints, starts: Ints, signatures: Signatures) -> _Task:
    documents = np.concatenate(part)
    places = np.searchsorted(members, documents)
    begins = starts[places]
    return _Task(list(map(len, part)), np.asarray(signatures[documents]), begins, starts[places + 1] - begins)


def _write_shingles(folder: Path, members: Ints, path: Path, workers: int) -> Ints:
    """Write the shingles of `members`, ascending, to a file of uint64; gives where each begins, [members + 1].

    The file is never empty, since one that is cannot be mapped.
    """
    import pyarrow.parquet as pq

    documents = folder / DOCUMENTS
    about = pq.read_metadata(documents)
    rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    borders = np.concatenate([[0], np.cumsum(rows)])
    cuts = np.searchsorted(members, borders)
    tasks = [
        (group, members[start:end] - borders[group]) for group, (start, end) in enumerate(pairwise(cuts)) if end > start
    ]
    counts = [np.zeros(1, np.int64)]
    with path.open("wb") as file:
        for keys, sizes in map_ordered(partial(_group_shingles, documents), tasks, workers):
            file.write(keys.tobytes())
            counts.append(sizes)
        file.write(bytes(8))
    return np.cumsum(np.concatenate(counts))


def _group_shingles(documents: Path, task: tuple[int, Ints]) -> tuple[Shingles, Ints]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    group, rows = task
    column = pq.ParquetFile(documents).read_row_group(group, columns=["text"], use_threads=False)["text"]
    texts = column.take(pa.array(rows)).to_pylist()
    found = distinct_shingles([text or "" for text in texts])
    return np.concatenate(found), np.array(list(map(len, found)), np.int64)
