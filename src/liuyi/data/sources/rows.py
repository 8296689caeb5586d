"""Rows of table files, one by one as a stream: (line, row), or (line, what is wrong with it)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from liuyi.core.errors import DataError
from liuyi.data.sources.stream import Opened
from liuyi.data.text import encoding_of

Row = tuple[int, dict[str, Any] | str]

_UNDECODED = re.compile("[\udc80-\udcff]")
_ROWS_PER_BATCH = 256
_WIDE = ("utf-16", "utf-32")
"""Encodings in which a line does not end with the byte 10."""


def read_jsonl(file: Opened, longest: int) -> Iterator[Row]:
    """Each line of JSON Lines as an object; a line that is none is told, and the next one read. Lines count from 1.

    No more than `longest` bytes of a line are held.
    """
    encoding = file.encoding()
    lines: Iterator[tuple[int, bytes | str | None]]
    wide = encoding in _WIDE
    lines = _wide_lines(file.stream, encoding, longest) if wide else _lines(file.stream, longest)
    if encoding == "cp1252":  # JSON is Unicode: what is left are damaged lines
        encoding = "utf-8"
    for line, raw in lines:
        if raw is None:
            yield line, longer_than(longest)
        elif isinstance(raw, str):
            yield line, parse_object(raw)
        elif raw.strip():
            text = _decoded(raw, encoding)
            yield line, parse_object(text) if text is not None else f"not {encoding.upper()}"


def read_csv(file: Opened, longest: int, *, tabs: bool) -> Iterator[Row]:
    """Each record of a CSV or TSV file by the names of its first line; `line` is where the record begins."""
    encoding = file.encoding()
    csv.field_size_limit(longest)
    text = io.TextIOWrapper(file.stream, encoding, errors="surrogateescape", newline="")
    reader = csv.DictReader(text, dialect=_dialect(file.head.decode(encoding, "replace"), tabs), strict=True)
    try:
        names = reader.fieldnames
    except csv.Error as error:
        raise DataError(f"the first line is not CSV: {error}") from None
    if not names:
        raise DataError("empty")
    while True:
        line = reader.line_num + 1
        try:
            row: dict[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not CSV: {error}"
            continue
        if None in row:
            yield line, f"more fields than the {len(names)} named in the first line"
        elif any(value is not None and _UNDECODED.search(value) for value in row.values()):
            mended = {
                name: value and _decoded(value.encode(encoding, "surrogateescape"), encoding)
                for name, value in row.items()
            }
            damaged = [name for name, value in mended.items() if row[name] and value is None]
            yield line, f"'{damaged[0]}' is not {encoding.upper()}" if damaged else mended
        else:
            yield line, row


def read_parquet(file: IO[bytes], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Each row of a Parquet file, counted from 1, with those of `columns` that there are (default: all)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = None if columns is None else [name for name in names if name in columns]
            batches = table.iter_batches(_ROWS_PER_BATCH, columns=wanted)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except pa.ArrowException as error:
        raise DataError(f"not readable as Parquet: {error}") from None


def parquet_names(file: IO[bytes]) -> list[str]:
    """The names of a Parquet file's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(file).names)
    except pa.ArrowException as error:
        raise DataError(f"not readable as Parquet: {error}") from None


def parse_object(text: str) -> dict[str, Any] | str:
    """The JSON object that a text is, or what is wrong with it."""
    try:
        row = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "not JSON: nested too deeply"
    return row if isinstance(row, dict) else "not a JSON object"


def longer_than(longest: int) -> str:
    """The reason for a row that was not read because of its length."""
    return f"longer than {longest / 1e6:g} MB"


def _lines(stream: io.BufferedReader, longest: int) -> Iterator[tuple[int, bytes | None]]:
    line = 0
    while raw := stream.readline(longest + 1):
        line += 1
        if len(raw) > longest and not raw.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield line, None
        else:
            yield line, raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw


def _wide_lines(stream: io.BufferedReader, encoding: str, longest: int) -> Iterator[tuple[int, str | None]]:
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")
    line = 0
    while raw := text.readline(longest + 1):
        line += 1
        if len(raw) > longest and not raw.endswith("\n"):
            while (rest := text.readline(1 << 20)) and not rest.endswith("\n"):
                pass
            yield line, None
        elif raw.strip():
            yield line, raw


def _decoded(raw: bytes, encoding: str) -> str | None:
    """The text of a line, in the file's encoding or, if it is Chinese in another one, in that; None if in neither."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        pass
    try:
        other = encoding_of(raw)
        return raw.decode(other) if other not in ("utf-8", "cp1252") else None
    except (DataError, UnicodeDecodeError):
        return None


def _dialect(head: str, tabs: bool) -> type[csv.Dialect]:
    if tabs:
        return csv.excel_tab
    first = head.partition("\n")[0]

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)

    return Dialect
