"""Attributes beside documents: columns of `attributes.parquet` added as a stream, whatever the size of the corpus.

    measured = (pa.table({"letters": pc.utf8_length(group["text"])}) for group in read_groups(source, ["text"]))
    with_columns(source, out, pa.schema([("letters", pa.int32())]), measured)

`attributes.parquet` has one row a document in the order of `documents.parquet`, and `id` as its first column. Equal
attributes give equal bytes, however they were cut into pieces on the way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.errors import ArtifactError
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS, ROWS_PER_GROUP

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def read_groups(folder: Path, columns: Sequence[str], file: str = DOCUMENTS) -> Iterator[pa.Table]:
    """Some columns of a corpus' documents, or of its attributes, one row group after another, in order.

    Raises ArtifactError where the file or a column is not there.
    """
    with _opened(folder / file) as parquet:
        _demand_columns(parquet, columns)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, columns=list(columns), use_threads=False)


def attribute_schema(folder: Path) -> pa.Schema:
    """The attributes that a corpus has, with `id`; an empty schema where nothing was measured yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / ATTRIBUTES
    return pq.read_schema(path) if path.exists() else pa.schema([])


def read_beside(folder: Path, columns: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Some columns of the documents, `id` among them, and all their attributes: one row group of documents after
    another.

    Raises ArtifactError where the corpus has no attributes, or those of other documents.
    """
    import pyarrow as pa

    wanted = list(dict.fromkeys(["id", *columns]))
    names = attribute_schema(folder).names
    parts = read_groups(folder, names, ATTRIBUTES)
    waiting = attribute_schema(folder).empty_table()
    for documents in read_groups(folder, wanted):
        while waiting.num_rows < documents.num_rows and (part := next(parts, None)) is not None:
            waiting = pa.concat_tables([waiting, part])
        attributes, waiting = waiting.slice(0, documents.num_rows), waiting.slice(documents.num_rows)
        if not attributes["id"].equals(documents["id"]):
            raise differ(folder)
        yield documents, attributes.combine_chunks()
    if waiting.num_rows or any(part.num_rows for part in parts):
        raise differ(folder)


def with_columns(source: Path, out: Path, added: pa.Schema, measured: Iterable[pa.Table]) -> int:
    """Write to `out` the documents of the corpus `source` with its attributes and those of `added`; gives their number.

    `measured` gives the columns of `added` for all documents in order, in tables of any number of rows; a column that
    was there before is replaced. Documents are linked, not copied, where the file system can. What is held in memory
    is a row group of attributes and the table at hand.
    Raises ArtifactError where the rows are not as many as the documents.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    carry(source, out)
    kept = [field for field in attribute_schema(source) if field.name != "id" and field.name not in added.names]
    schema = pa.schema([("id", pa.string()), *kept, *added])
    old = _aligned(source, [field.name for field in kept])
    fresh = rows_by(ROWS_PER_GROUP, measured, added)
    count = 0
    with pq.ParquetWriter(out / ATTRIBUTES, schema, compression="zstd", compression_level=3) as writer:
        for before in old:
            new = next(fresh, None)
            if new is None or new.num_rows != before.num_rows:
                raise ArtifactError("fewer rows were measured than there are documents", where=str(source))
            columns = [*before.columns, *new.columns]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROWS_PER_GROUP)
            count += before.num_rows
        if next(fresh, None) is not None:
            raise ArtifactError("more rows were measured than there are documents", where=str(source))
    return count


def carry(source: Path, out: Path, file: str = DOCUMENTS) -> None:
    """Put a file of one corpus, unchanged, into another: linked where the file system can, else copied."""
    try:
        os.link(source / file, out / file)
    except OSError:
        shutil.copyfile(source / file, out / file)


def rows_by(rows: int, tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the same rows in the same order, `rows` in each and the rest in the last, as `schema` says."""
    import pyarrow as pa

    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.select(schema.names).cast(schema)])
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows).combine_chunks()
            waiting = waiting.slice(rows)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def _aligned(source: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """`id` and the attributes named, in tables of one row group's size. Raises ArtifactError where ids do not agree."""
    import pyarrow as pa

    ids = rows_by(ROWS_PER_GROUP, read_groups(source, ["id"]), pa.schema([("id", pa.string())]))
    if not names:
        yield from ids
        return
    schema = attribute_schema(source)
    wanted = pa.schema([schema.field(name) for name in ("id", *names)])
    known = rows_by(ROWS_PER_GROUP, read_groups(source, wanted.names, ATTRIBUTES), wanted)
    for given in ids:
        table = next(known, None)
        if table is None or not table["id"].equals(given["id"]):
            raise differ(source)
        yield table
    if next(known, None) is not None:
        raise differ(source)


def differ(folder: Path) -> ArtifactError:
    """The error of a corpus whose attributes are those of other documents."""
    return ArtifactError(
        f"{ATTRIBUTES} and the documents do not have the same ids in the same order", where=str(folder)
    )


def _opened(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    if not path.exists():
        hint = "run data.clean on it first" if path.name == ATTRIBUTES else "is this a corpus?"
        raise ArtifactError(f"there is no {path.name}", where=str(path.parent), hint=hint)
    return pq.ParquetFile(path)


def _demand_columns(parquet: pq.ParquetFile, columns: Sequence[str]) -> None:
    missing = set(columns) - set(parquet.schema_arrow.names)
    if missing:
        raise ArtifactError(f"the corpus lacks {sorted(missing)}", hint="was it cleaned and measured by all steps?")
