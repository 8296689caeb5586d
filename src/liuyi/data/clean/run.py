"""Run all filters over a corpus: documents in, attributes beside them out, duplicates over the whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.data.attributes import read_groups, with_columns
from liuyi.data.clean import filters
from liuyi.data.corpus import DOCUMENTS
from liuyi.data.dedup.exact import as_numbers
from liuyi.data.dedup.groups import Duplicates, Fingerprints, duplicate_schema, find_duplicates
from liuyi.data.dedup.minhash import HASHES, Signatures, signatures
from liuyi.data.parts import map_groups

SIGNATURE = "signature"

_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 22
"""Of text. The views of a batch take some thirty times as much."""


@dataclass(frozen=True)
class Cleaned:
    """What cleaning found."""

    documents: int
    duplicates: Counter[str]
    """How many there are of each kind."""


def clean(
    source: Path,
    out: Path,
    workdir: Path,
    *,
    jaccard: float,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> Cleaned:
    """Write the documents of the corpus `source` to `out`, with their attributes beside them.

    Beside what the filters give: `duplicate_of` (the id of the document that stays in this one's place, empty where it
    stays itself), `duplicate_kind` (`exact` or `near`) and `duplicate_similarity`. Row groups are measured one by one
    and kept in `workdir`, with the signatures: what is held in memory grows by some 200 bytes a document. The result
    depends neither on the engine nor on the number of workers. Raises DataError where ids are not unique.
    """
    _demand_unique_ids(source)
    measured = map_groups(measure_group, source, ["text"], workdir, workers=workers, on_progress=on_progress)
    fingerprints, sketches, chars = _collect(measured, workdir / "signatures")
    found = find_duplicates(source, fingerprints, sketches, chars, threshold=jaccard, workdir=workdir, workers=workers)
    again = map_groups(measure_group, source, ["text"], workdir)
    schema = pa.schema([*filters.schema(), *duplicate_schema()])
    documents = with_columns(source, out, schema, _beside(again, found, source))
    return Cleaned(documents, Counter(kind for kind in found.kind if kind))


def measure_group(group: pa.Table) -> pa.Table:
    """The attributes and signatures of the documents of a row group, measured in batches of bounded size."""
    texts = group["text"].combine_chunks().fill_null("")
    tables = [_measure(batch) for batch in batches(texts)]
    return pa.concat_tables(tables) if tables else _measure(texts)


def batches(texts: pa.Array) -> Iterator[pa.Array]:
    """The texts in order, some at a time: as many as are quick together and as do not take much memory."""
    sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1])
    start = held = 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and (row - start == _ROWS_AT_ONCE or held + size > _BYTES_AT_ONCE):
            yield texts.slice(start, row - start)
            start, held = row, 0
        held += size
    if start < len(texts):
        yield texts.slice(start)


def _measure(texts: pa.Array) -> pa.Table:
    sketches = signatures(texts.to_pylist())
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(4 * HASHES), len(texts), [None, pa.py_buffer(np.ascontiguousarray(sketches))]
    )
    return filters.measure(texts).append_column(SIGNATURE, column)


def _collect(measured: Iterator[pa.Table], path: Path) -> tuple[Fingerprints, Signatures, NDArray[np.int64]]:
    """What the search for duplicates needs of all documents; signatures go to a file, which is mapped."""
    fingerprints, chars = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    with path.open("wb") as file:
        for table in measured:
            fingerprints.append(as_numbers(table["fingerprint"].to_pylist()))
            chars.append(table["chars"].to_numpy())
            for chunk in table[SIGNATURE].chunks:
                file.write(chunk.buffers()[1].slice(4 * HASHES * chunk.offset, 4 * HASHES * len(chunk)))
    lengths = np.concatenate(chars)
    shape = (len(lengths), HASHES)
    sketches = np.memmap(path, np.uint32, "r", shape=shape) if len(lengths) else np.zeros(shape, np.uint32)
    return np.concatenate(fingerprints), sketches, lengths


def _beside(measured: Iterator[pa.Table], found: Duplicates, source: Path) -> Iterator[pa.Table]:
    for table, duplicates in zip(measured, found.attributes(source), strict=True):
        columns = [*table.select(filters.schema().names).columns, *duplicates.columns]
        yield pa.table(columns, schema=pa.schema([*filters.schema(), *duplicate_schema()]))


def _demand_unique_ids(source: Path) -> None:
    """Compare 128-bit hashes of the ids: these take a sixth of the memory of the ids."""
    hashes = b"".join(hashlib.blake2b(id.encode(), digest_size=16).digest() for id in _ids(source))
    pairs = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    _, first, counts = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    if len(first) != len(pairs):
        example = next(islice(_ids(source), int(first[counts > 1].min()), None))
        raise DataError(
            f"the corpus holds several documents of the same id, such as {example}",
            where=str(source / DOCUMENTS),
            hint="an id is made of source, address and text: was something read twice?",
        )


def _ids(source: Path) -> Iterator[str]:
    for group in read_groups(source, ["id"]):
        yield from group["id"].to_pylist()
