"""Lines and paragraphs that stand in many documents: headers, footers, notices.

The line-level deduplication of CCNet (Wenzek et al., 2020), over the whole corpus and by how many documents have the
text. Texts are compared by their words, without case and punctuation, as 64-bit hashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from liuyi.core.hashset import HashSet
from liuyi.core.words import blocks, whole_hashes, words_of
from liuyi.data.corpus import count_documents
from liuyi.data.dedup.counts import Numbered, repeated
from liuyi.data.dedup.ragged import as_flat, as_lists, changes
from liuyi.data.dedup.spans import span_lists, stays
from liuyi.data.parts import map_groups

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Unit = Literal["line", "paragraph"]

_ENDS: dict[Unit, re.Pattern[str]] = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n\s*\n")}
"""What a line or a paragraph ends with, and what is cut out with it."""


@dataclass(frozen=True)
class Repeats:
    """Which pieces count as repeated."""

    unit: Unit
    documents: int
    """In so many documents a piece must stand."""
    min_words: int
    """Shorter pieces stay wherever they stand; a Han character is a word."""
    keep_first: bool
    """Whether the first one in the corpus stays."""


def repeated_pieces(
    source: Path,
    workdir: Path,
    rule: Repeats,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Iterator[pa.Array]:
    """The spans of repeated lines or paragraphs: one list a document, in arrays of a row group each.

    Documents that go as duplicates, or for eval items, neither count nor keep anything. Hashes lie in `workdir`; in
    memory are those of the repeated pieces, and those that are counted at a time.
    """
    find = partial(pieces_in_group, rule.unit, rule.min_words)
    staying = stays(source, count_documents(source))

    def tables() -> Iterator[tuple[pa.Table, int]]:
        start = 0
        for table in map_groups(find, source, ["text"], workdir, workers=workers, on_progress=on_progress):
            yield table, start
            start += table.num_rows

    total = sum(len(as_flat(table["hash"])[0]) for table, _ in tables())
    hashes, first, _ = repeated(lambda: (_numbers(*one, staying) for one in tables()), total, rule.documents)
    known = HashSet(hashes)
    for table, start in tables():
        yield _marked(table, start, known, first, staying, rule)


def pieces_in_group(unit: Unit, min_words: int, group: pa.Table) -> pa.Table:
    """For each document of a row group, the hash and the place of each piece that is long enough."""
    import pyarrow as pa

    texts = [text or "" for text in group["text"].to_pylist()]
    borders = [[0, *(end.end() for end in _ENDS[unit].finditer(text)), len(text)] for text in texts]
    owners = np.repeat(np.arange(len(texts)), [len(places) - 1 for places in borders])
    pieces = [text[start:end] for text, places in zip(texts, borders, strict=True) for start, end in pairwise(places)]
    hashes, counts = _hashes(pieces)
    columns = {
        "hash": hashes,
        "start": np.array([start for places in borders for start in places[:-1]], np.int64),
        "end": np.array([end for places in borders for end in places[1:]], np.int64),
    }
    long = counts >= min_words
    return pa.table({name: as_lists(owners[long], values[long], len(texts)) for name, values in columns.items()})


def _hashes(pieces: Sequence[str]) -> tuple[NDArray[np.uint64], Ints]:
    """The hash of each piece, and how many words it has."""
    hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for block in blocks(pieces):
        words = words_of(pieces[block])
        hashes.append(whole_hashes(words))
        counts.append(np.diff(words.offsets))
    return np.concatenate(hashes), np.concatenate(counts)


def _numbers(table: pa.Table, start: int, staying: NDArray[np.bool_]) -> Numbered:
    """The hashes of the documents that stay, each once a document."""
    hashes, owners = as_flat(table["hash"], start)
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    new = changes(hashes, owners)
    new = new[staying[owners[new]]]
    return hashes[new], owners[new]


def _marked(
    table: pa.Table, start: int, known: HashSet, first: Ints, staying: NDArray[np.bool_], rule: Repeats
) -> pa.Array:
    hashes, owners = as_flat(table["hash"], start)
    found, which = known.members(hashes)
    here = staying[owners[found]]
    found, which = found[here], which[here]
    if rule.keep_first:
        at_home = np.flatnonzero(first[which] == owners[found])
        _, original = np.unique(which[at_home], return_index=True)
        found = np.delete(found, at_home[original])
    starts, ends = (table[name].combine_chunks().flatten().to_numpy()[found] for name in ("start", "end"))
    return span_lists(owners[found] - start, starts, ends, rule.unit, table.num_rows)
