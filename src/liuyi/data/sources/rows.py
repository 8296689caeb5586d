"""Rows of table files, one by one: (line, row), or (line, what is wrong with it)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.text import decode, encoding_of

Row = tuple[int, dict[str, Any] | str]

_SAMPLE_BYTES = 65_536
_ROWS_PER_BATCH = 1024
_LARGEST_FIELD = 1 << 27


def read_jsonl(path: Path) -> Iterator[Row]:
    """Each line of JSON Lines as an object; a line that is none is told, and the next one read. Lines count from 1."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(decode(raw))
            except DataError as error:
                yield line, error.message
            except (ValueError, RecursionError) as error:
                yield line, f"not JSON: {error}"
            else:
                yield line, row if isinstance(row, dict) else "not a JSON object"


def read_csv(path: Path) -> Iterator[Row]:
    """Each record of a CSV or TSV file by the names of its first line; `line` is where the record ends."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    encoding = encoding_of(sample, final=len(sample) < _SAMPLE_BYTES)
    csv.field_size_limit(_LARGEST_FIELD)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        reader = csv.DictReader(file, dialect=_dialect(path, sample.decode(encoding, "replace")))
        if not reader.fieldnames:
            raise DataError("empty")
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, f"not CSV: {error}"
                continue
            if None in row:
                yield reader.line_num, f"more fields than the {len(reader.fieldnames)} named in the first line"
            else:
                yield reader.line_num, dict(row)


def read_parquet(path: Path) -> Iterator[Row]:
    """Each row of a Parquet file, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(_ROWS_PER_BATCH) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except pa.ArrowException as error:
        raise DataError(f"not readable as Parquet: {error}") from None


def _dialect(path: Path, sample: str) -> type[csv.Dialect]:
    if path.suffix.lower() == ".tsv":
        return csv.excel_tab
    first = sample.split("\n", 1)[0]

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)

    return Dialect
