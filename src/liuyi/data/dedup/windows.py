"""Windows of bytes that may be repeated, in files by name, and which of them stand further ahead already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuyi.core.words import letter_hashes, span_hashes
from liuyi.data.dedup.ragged import changes

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class Windows:
    """Windows of `length` bytes, divided among files so that equal windows are in the same; removed at the end."""

    def __init__(self, folder: Path, length: int, files: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._length = folder, length
        self._texts = [(folder / f"{number}.texts").open("wb") for number in range(files)]
        self._pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(files)]

    def __enter__(self) -> Windows:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._texts:
            file.close()
        shutil.rmtree(self._folder)

    def add(self, document: int, text: bytes, first: Ints, counts: Ints, names: Hashes) -> None:
        """Add runs of windows of a document: `counts` windows, the first of which begins at the byte `first`."""
        files = (names % np.uint64(len(self._texts))).astype(np.int64)
        so_far = np.cumsum(counts) - counts
        begins = changes(first - so_far, files)
        lasts = (first + counts)[np.append(begins[1:], len(first)) - 1]
        for file, start, end in zip(files[begins].tolist(), first[begins].tolist(), lasts.tolist(), strict=True):
            self._texts[file].write(text[start : end + self._length - 1])
            self._pieces[file].append((document, start, end - start))

    def repeated(self) -> tuple[Ints, Ints, Ints]:
        """(documents, starts, ends) of what stands further ahead already, in bytes, ascending."""
        found: list[tuple[int, int, int]] = []
        for number, file in enumerate(self._texts):
            file.close()
            found += self._of_file(number)
        columns = np.array(sorted(found), np.int64).reshape(-1, 3).T
        return columns[0], columns[1], columns[2]

    def _of_file(self, number: int) -> Iterator[tuple[int, int, int]]:
        data = np.fromfile(self._folder / f"{number}.texts", np.uint8)
        documents, first, counts = np.array(self._pieces[number], np.int64).reshape(-1, 3).T
        if not len(documents):
            return
        # Windows are numbered through, `places` are theirs in the file and `starts` in their documents.
        piece = np.repeat(np.arange(len(counts)), counts)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = inside + np.repeat(np.cumsum(counts + self._length - 1) - (counts + self._length - 1), counts)
        starts, owners = inside + first[piece], documents[piece]
        earliest = _first_of_each(span_hashes(letter_hashes(data), places, places + self._length))
        again = np.flatnonzero(
            (earliest != np.arange(len(places)))
            & ((owners[earliest] != owners) | (starts[earliest] <= starts - self._length))
        )
        before = earliest[again]
        order = np.arange(len(again))
        begins = changes(places[again] - order, places[before] - order, piece[again])
        for begin, count in zip(begins.tolist(), np.diff(np.append(begins, len(again))).tolist(), strict=True):
            size = count + self._length - 1
            here, there = int(places[again[begin]]), int(places[before[begin]])
            if np.array_equal(data[here : here + size], data[there : there + size]):
                start = int(starts[again[begin]])
                yield int(owners[again[begin]]), start, start + size


def _first_of_each(keys: Hashes) -> Ints:
    """[keys] the number of the first equal key."""
    order = np.argsort(keys, kind="stable")
    begins = changes(keys[order])
    first = np.empty(len(keys), np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(begins, len(keys))))
    return first
