"""The corpus: documents as rows of one Parquet file, with ids that depend on nothing but the document."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS = "documents.parquet"
ATTRIBUTES = "attributes.parquet"
DROPPED = "dropped.parquet"
REJECTED = "rejected.parquet"
COLUMNS = ("id", "text", "source", "url", "license", "lang", "created", "cluster")

ROWS_PER_GROUP = 1024
_BYTES_PER_GROUP = 1 << 24
_REASONS_SHOWN = 8


@dataclass(frozen=True)
class Document:
    """One document. `source` is where it came from as a whole, `cluster` is what is held out together with it."""

    id: str
    text: str
    source: str
    url: str
    license: str
    lang: str = ""
    created: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Rejected:
    """Something that could not be read as a document: never dropped in silence."""

    file: str
    line: int
    """1-based line or row; 0 where the whole file is meant."""
    reason: str
    head: str = ""
    """The first characters of what was rejected."""


def document_id(source: str, path: str, text: str) -> str:
    """Hex SHA-256 of (source, path, text): the same document has the same id on every machine."""
    digest = hashlib.sha256()
    for part in (source, path, text):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def document_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in COLUMNS])


def rejected_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("head", pa.string())])


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet (zstd), byte-identical for equal tables."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=ROWS_PER_GROUP)


def write_documents(folder: Path, documents: Iterable[Document]) -> tuple[int, int]:
    """Write `documents.parquet` as a stream; gives the number of documents and of UTF-8 bytes of text."""
    with Rows(folder / DOCUMENTS, document_schema()) as rows:
        for document in documents:
            rows.add(asdict(document))
    return rows.count, rows.bytes["text"]


def write_rejected(folder: Path, rejected: Iterable[Rejected]) -> int:
    """Write `rejected.parquet` as a stream, also when nothing was rejected; gives the number of rows."""
    with Rows(folder / REJECTED, rejected_schema()) as rows:
        for row in rejected:
            rows.add(asdict(row))
    return rows.count


def write_found(folder: Path, found: Iterable[Document | Rejected]) -> Written:
    """Write both tables of a corpus as one stream: documents, and what could not be read as one."""
    written = Written()
    with (
        Rows(folder / DOCUMENTS, document_schema()) as documents,
        Rows(folder / REJECTED, rejected_schema()) as rejected,
    ):
        for one in found:
            if isinstance(one, Document):
                documents.add(asdict(one))
                written.licences.add(one.license)
            else:
                rejected.add(asdict(one))
                written.reasons[one.reason.partition(":")[0]] += 1
                written.first_rejected = written.first_rejected or one
    written.documents, written.bytes, written.rejected = documents.count, documents.bytes["text"], rejected.count
    return written


@dataclass
class Written:
    """What a corpus holds once it is written."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    rejected: int = 0
    licences: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    """How often each reason occurs, by its words before the first colon."""
    first_rejected: Rejected | None = None

    def summary(self) -> str:
        """Lines for people: how much there is, and the reasons for what was rejected, the most frequent first."""
        lines = [f"{self.documents:,} documents, {self.bytes / 1e6:.1f} MB; {self.rejected:,} files or rows rejected"]
        lines += [f"  {count:,} × {reason}" for reason, count in self.reasons.most_common(_REASONS_SHOWN)]
        if len(self.reasons) > _REASONS_SHOWN:
            lines.append(f"  … and {len(self.reasons) - _REASONS_SHOWN} more reasons")
        return "\n".join([*lines, f"  {REJECTED} has each of them"] if self.rejected else lines)


class Rows:
    """A Parquet file written row by row, in row groups bounded in rows and in bytes of text: what waits to be written
    never grows beyond one group, and equal rows give equal bytes.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.count = 0
        self.bytes: Counter[str] = Counter()
        """UTF-8 bytes written so far, by column of text."""
        self._schema = schema
        self._texts = [column.name for column in schema if pa.types.is_string(column.type)]
        self._rows: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.count += 1
        for name in self._texts:
            size = len((row[name] or "").encode())
            self.bytes[name] += size
            self._waiting_bytes += size
        if len(self._rows) == ROWS_PER_GROUP or self._waiting_bytes >= _BYTES_PER_GROUP:
            self._write()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None and (self._rows or not self.count):
            self._write()
        self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._waiting_bytes = [], 0


class Groups:
    """A Parquet file written table by table. Its row groups are bounded in rows and in bytes of text, and where they
    end depends on the rows alone: equal rows give equal bytes, however they came.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.count = 0
        self._texts = [column.name for column in schema if pa.types.is_string(column.type)]
        self._waiting = schema.empty_table()
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)

    def add(self, table: pa.Table) -> None:
        import pyarrow as pa

        self.count += table.num_rows
        self._waiting = pa.concat_tables([self._waiting, table])
        while rows := self._full():
            self._write(rows)

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None and (self._waiting.num_rows or not self.count):
            self._write(self._waiting.num_rows)
        self._writer.close()

    def _full(self) -> int:
        """How many of the rows that wait make a group; 0 where they do not fill one."""
        import numpy as np
        import pyarrow.compute as pc

        sizes = np.zeros(self._waiting.num_rows, np.int64)
        for name in self._texts:
            sizes += pc.fill_null(pc.binary_length(self._waiting[name]), 0).to_numpy()
        rows = int(np.searchsorted(np.cumsum(sizes), _BYTES_PER_GROUP)) + 1
        rows = min(rows, ROWS_PER_GROUP)
        return rows if rows <= self._waiting.num_rows else 0

    def _write(self, rows: int) -> None:
        self._writer.write_table(self._waiting.slice(0, rows), row_group_size=ROWS_PER_GROUP)
        self._waiting = self._waiting.slice(rows)


def read_documents(folder: Path, columns: Iterable[str] = COLUMNS) -> pa.Table:
    """The documents of a corpus as a table.

    Raises ArtifactError where the folder holds no documents or lacks a column.
    """
    import pyarrow.parquet as pq

    path = folder / DOCUMENTS
    if not path.exists():
        raise ArtifactError(f"there is no {DOCUMENTS}", where=str(folder), hint="is this a corpus?")
    wanted = list(columns)
    missing = set(wanted) - set(pq.read_schema(path).names)
    if missing:
        raise ArtifactError(f"{DOCUMENTS} lacks {sorted(missing)}", where=str(folder))
    return pq.read_table(path, columns=wanted)


def count_documents(folder: Path) -> int:
    """How many documents a corpus holds."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(folder / DOCUMENTS).num_rows)
