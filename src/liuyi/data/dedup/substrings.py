"""Substrings of a corpus that occur again: all but the first occurrence of each, found exactly.

What is marked is what the suffix array of Lee et al. (2021, arXiv 2107.06499) would find: every window of `length`
bytes that stands further ahead in the corpus already, without overlapping itself. A suffix array takes 8 bytes and more
of memory for each byte of the corpus; here, windows that cannot be repeated are left out first.

1. Winnowing (Schleimer et al., 2003): each window is named by the smallest hash of the shorter runs of bytes in it.
   Equal windows have equal names, so one whose name occurs once in the corpus is not repeated. There are some 50 times
   fewer names than bytes.
2. The windows with repeated names are divided among files by name, so that equal ones meet in one file.
3. In each file, windows are grouped by their hash, and compared with the first of their group byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from liuyi.core.hashset import HashSet
from liuyi.core.words import blocks, letter_hashes, span_hashes
from liuyi.data.attributes import read_groups
from liuyi.data.corpus import count_documents
from liuyi.data.dedup.counts import repeated
from liuyi.data.dedup.ragged import as_flat, as_lists, changes
from liuyi.data.dedup.spans import span_lists, stays
from liuyi.data.dedup.windows import Windows
from liuyi.data.parts import map_groups

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

WINDOWS_AT_ONCE = 1 << 23
"""Windows that are grouped at a time, which takes some 400 MB."""
_MOST_FILES = 256
_SEPARATOR = b"\xff"
"""Stands in no UTF-8 text."""


_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Runs:
    """Neighbouring windows of the same name, in some documents."""

    owners: Ints
    """[runs] the document of each, ascending."""
    first: Ints
    """[runs] where the first window of each begins, in bytes of its document."""
    counts: Ints
    """[runs] how many windows it has."""
    names: Hashes


def repeated_substrings(
    source: Path,
    workdir: Path,
    length: int,
    *,
    windows_at_once: int = WINDOWS_AT_ONCE,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Iterator[pa.Array]:
    """The spans of repeated substrings of at least `length` bytes: one list a document, in arrays of a row group each.

    Spans hold whole characters. Documents that go as duplicates, or for eval items, neither count nor keep anything.
    """
    staying = stays(source, count_documents(source))

    def parts(step: Callable[[pa.Table], pa.Table], folder: str) -> Iterator[tuple[pa.Table, int]]:
        start = 0
        for table in map_groups(step, source, ["text"], workdir / folder, workers=workers, on_progress=on_progress):
            yield table, start
            start += table.num_rows

    def names() -> Iterator[tuple[Hashes, Ints]]:
        for table, start in parts(partial(names_in_group, length), "names"):
            values, owners = as_flat(table["name"], start)
            yield values[staying[owners]], owners[staying[owners]]

    total = sum(len(values) for values, _ in names())
    again, _, counts = repeated(names, total, 2)
    files = int(np.clip(counts.sum() * _grams(length) // windows_at_once + 1, 1, _MOST_FILES))
    runs = parts(partial(runs_in_group, length, HashSet(again)), "runs")
    with Windows(workdir / "windows", length, files) as windows:
        for group, (table, start) in zip(read_groups(source, ["text"]), runs, strict=True):
            _collect(windows, group["text"].to_pylist(), table, start, staying)
        owners, starts, ends = windows.repeated()
    yield from _spans(source, owners, starts, ends)


def names_in_group(length: int, group: pa.Table) -> pa.Table:
    """For each document of a row group, the names of its windows, each as often as it is the name of a new place."""
    import pyarrow as pa

    runs = _runs(_encoded(group), length)
    # One place names no more than as many windows as there are runs of bytes in a window.
    times = 1 + (runs.counts > _grams(length))
    return pa.table({"name": as_lists(np.repeat(runs.owners, times), np.repeat(runs.names, times), group.num_rows)})


def runs_in_group(length: int, again: HashSet, group: pa.Table) -> pa.Table:
    """For each document of a row group, the windows with a repeated name: where runs of them begin, how many, whose."""
    import pyarrow as pa

    runs = _runs(_encoded(group), length)
    found, _ = again.members(runs.names)
    columns = {"first": runs.first, "count": runs.counts, "name": runs.names}
    owners = runs.owners[found]
    return pa.table({name: as_lists(owners, values[found], group.num_rows) for name, values in columns.items()})


def _encoded(group: pa.Table) -> list[bytes]:
    return [(text or "").encode() for text in group["text"].to_pylist()]


def _grams(length: int) -> int:
    """How many runs of bytes a window is named by: each has half its length."""
    return length - length // 2 + 1


def _runs(texts: Sequence[bytes], length: int) -> _Runs:
    parts = [_runs_of_block(texts[block], block.start, length) for block in blocks(texts)]
    return _Runs(
        np.concatenate([_NONE, *(part.owners for part in parts)]),
        np.concatenate([_NONE, *(part.first for part in parts)]),
        np.concatenate([_NONE, *(part.counts for part in parts)]),
        np.concatenate([_NONE.astype(np.uint64), *(part.names for part in parts)]),
    )


def _runs_of_block(texts: Sequence[bytes], number: int, length: int) -> _Runs:
    data = np.frombuffer(_SEPARATOR.join(texts), np.uint8)
    sizes = np.array(list(map(len, texts)), np.int64)
    borders = np.concatenate([[0], np.cumsum(sizes + 1)])
    windows = np.maximum(sizes - length + 1, 0)
    owners = np.repeat(np.arange(len(texts)), windows)
    places = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    names = _names(data, length)[places + borders[owners]]
    begins = changes(names, owners)
    counts = np.diff(np.append(begins, len(names)))
    return _Runs(number + owners[begins], places[begins], counts, names[begins])


def _names(data: NDArray[np.uint8], length: int) -> Hashes:
    """The smallest hash of the runs of half its bytes in each window: [bytes − length + 1]."""
    gram = length // 2
    if len(data) < length:
        return np.zeros(0, np.uint64)
    least = span_hashes(letter_hashes(data), slice(0, len(data) - gram + 1), slice(gram, len(data) + 1))
    wanted, span = _grams(length), 1
    while span < wanted:
        further = min(span, wanted - span)
        least = np.minimum(least[:-further], least[further:])
        span += further
    return least


def _collect(
    windows: Windows, texts: Sequence[str | None], table: pa.Table, start: int, staying: NDArray[np.bool_]
) -> None:
    first, owners = as_flat(table["first"], start)
    counts, names = as_flat(table["count"], start)[0], as_flat(table["name"], start)[0]
    for document in np.unique(owners[staying[owners]]).tolist():
        mine = slice(*np.searchsorted(owners, [document, document + 1]).tolist())
        text = (texts[document - start] or "").encode()
        windows.add(document, text, first[mine], counts[mine], names[mine])


def _spans(source: Path, owners: Ints, starts: Ints, ends: Ints) -> Iterator[pa.Array]:
    """Spans of bytes as spans of characters, by row groups; those that overlap or touch are one."""
    start = 0
    for group in read_groups(source, ["text"]):
        mine = slice(*np.searchsorted(owners, [start, start + group.num_rows]).tolist())
        found: list[tuple[int, int, int]] = []
        texts = group["text"]
        for document in np.unique(owners[mine]).tolist():
            spans = slice(*np.searchsorted(owners, [document, document + 1]).tolist())
            data = np.frombuffer(texts[document - start].as_py().encode(), np.uint8)
            for first, last in zip(*_characters(data, *_joined(starts[spans], ends[spans])), strict=True):
                if first < last:
                    found.append((document - start, int(first), int(last)))
        numbers, firsts, lasts = np.array(found, np.int64).reshape(-1, 3).T
        yield span_lists(numbers, firsts, lasts, "substring", group.num_rows)
        start += group.num_rows


def _joined(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Spans, ascending by their start, as spans that neither overlap nor touch."""
    furthest = np.maximum.accumulate(ends)
    new = np.ones(len(starts), bool)
    new[1:] = starts[1:] > furthest[:-1]
    begins = np.flatnonzero(new)
    return starts[begins], furthest[np.append(begins[1:], len(starts)) - 1]


def _characters(data: NDArray[np.uint8], starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Spans of bytes as spans of the characters that lie within them as a whole."""
    leads = (data & 0xC0) != 0x80
    before = np.concatenate([[0], np.cumsum(leads)])
    inside = np.append(~leads, False)[ends]
    return before[starts], before[ends] - inside
