"""The corpus: documents as rows of one Parquet file, with ids that depend on nothing but the document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS = "documents.parquet"
ATTRIBUTES = "attributes.parquet"
DROPPED = "dropped.parquet"
REJECTED = "rejected.parquet"
COLUMNS = ("id", "text", "source", "url", "license", "lang", "created", "cluster")

_ROWS_PER_GROUP = 1024


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


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet (zstd), byte-identical for equal tables."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=_ROWS_PER_GROUP)


def write_documents(folder: Path, documents: Iterable[Document]) -> tuple[int, int]:
    """Write `documents.parquet` as a stream; gives the number of documents and of UTF-8 bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count, size = document_schema(), 0, 0
    with pq.ParquetWriter(folder / DOCUMENTS, schema, compression="zstd", compression_level=3) as writer:
        rows: list[dict[str, str]] = []
        for document in documents:
            rows.append(asdict(document))
            count += 1
            size += len(document.text.encode())
            if len(rows) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows or not count:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return count, size


def write_rejected(folder: Path, rejected: Iterable[Rejected]) -> int:
    """Write `rejected.parquet`, also when nothing was rejected; gives the number of rows."""
    import pyarrow as pa

    fields = [("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("head", pa.string())]
    table = pa.Table.from_pylist([asdict(row) for row in rejected], schema=pa.schema(fields))
    write_table(table, folder / REJECTED)
    return int(table.num_rows)


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
