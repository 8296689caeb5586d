"""Rows of any table file as one stream: JSON Lines, JSON arrays, CSV, TSV, Parquet, compressed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.corpus import Rejected
from liuyi.data.sources.json_rows import read_json
from liuyi.data.sources.location import SourceFile
from liuyi.data.sources.rows import parquet_names, read_csv, read_jsonl, read_parquet
from liuyi.data.sources.stream import BROKEN, opened, seekable, suffixes
from liuyi.data.text import mend

TABLES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"})

_HEAD_CHARS = 200


@dataclass(frozen=True)
class TableRow:
    """One row, or what is wrong with it."""

    line: int
    """On which it begins; the row's number in a Parquet file."""
    number: int
    """What names it in its file: the number of an element of a JSON array, else the line."""
    row: dict[str, Any] | str

    def rejected(self, name: str, reason: str) -> Rejected:
        """This row as one that was not read."""
        reason = reason if self.number == self.line else f"{reason} (row {self.number})"
        return Rejected(
            name, self.line, mend(reason), "" if isinstance(self.row, str) else mend(str(self.row)[:_HEAD_CHARS])
        )


def read_table(
    file: SourceFile, longest: int, columns: Callable[[list[str]], Sequence[str] | None] = lambda names: None
) -> Iterator[TableRow]:
    """Each row of a table file. `columns` chooses from the names of a Parquet file's columns what is read (None: all).

    No more than `longest` bytes of a row are held. Raises DataError and those of `BROKEN` where no more can be read.
    """
    kind, _ = suffixes(file.name)
    if kind not in TABLES:
        known = " ".join(sorted(TABLES))
        raise DataError(f"not a format that is read: {kind or 'no suffix'}; these are {known}")
    if kind == ".parquet":
        with seekable(file) as table:
            wanted = columns(parquet_names(table))
            table.seek(0)
            for line, row in read_parquet(table, wanted):
                yield TableRow(line, line, row)
        return
    with opened(file) as open_file:
        if kind == ".json":
            for line, number, row in read_json(open_file, longest):
                yield TableRow(line, number, row)
            return
        csv = kind in (".csv", ".tsv")
        rows = read_csv(open_file, longest, tabs=kind == ".tsv") if csv else read_jsonl(open_file, longest)
        for line, row in rows:
            yield TableRow(line, line, row)


def broken_off(name: str, line: int, error: Exception) -> Rejected:
    """The rest of a file of which nothing after `line` could be read (0: nothing at all)."""
    if isinstance(error, DataError):
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
    else:
        reason = getattr(error, "strerror", None) or f"broken off: {error or type(error).__name__}"
    return Rejected(name, line + 1 if line else 0, reason)


UNREADABLE = (DataError, *BROKEN)
"""What `read_table` raises where no more of a file can be read."""
