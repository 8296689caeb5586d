"""Rows of table files, one by one: (line, row), or (line, what is wrong with it)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.text import encoding_of

Row = tuple[int, dict[str, Any] | str]

_SAMPLE_BYTES = 65_536
_UNDECODED = re.compile("[\udc80-\udcff]")
_ROWS_PER_BATCH = 1024
_LARGEST_FIELD = 1 << 27


def read_jsonl(path: Path) -> Iterator[Row]:
    """Each line of JSON Lines as an object; a line that is none is told, and the next one read. Lines count from 1."""
    encoding = _encoding(path)
    if encoding == "cp1252":  # JSON is Unicode: what is left are damaged lines
        encoding = "utf-8"
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as file:
        for line, raw in enumerate(file, 1):
            if _UNDECODED.search(raw):
                yield line, f"not {encoding.upper()}"
            elif raw.strip():
                yield line, _object(raw)


def read_csv(path: Path) -> Iterator[Row]:
    """Each record of a CSV or TSV file by the names of its first line; `line` is where the record ends."""
    encoding = _encoding(path)
    csv.field_size_limit(_LARGEST_FIELD)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        reader = csv.DictReader(file, dialect=_dialect(path, encoding))
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


def _object(text: str) -> dict[str, Any] | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else "not a JSON object"


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    return encoding_of(sample, final=len(sample) < _SAMPLE_BYTES)


def _dialect(path: Path, encoding: str) -> type[csv.Dialect]:
    if path.suffix.lower() == ".tsv":
        return csv.excel_tab
    with path.open(encoding=encoding, errors="replace") as file:
        first = file.readline(_SAMPLE_BYTES)

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)

    return Dialect
