"""The rows inside artifacts: documents, conversations, preference pairs and items, each found by its id."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liuyi.core.artifact import Manifest
from liuyi.core.errors import ArtifactError
from liuyi.core.store import Store


@dataclass(frozen=True)
class RowTable:
    """Where a kind of artifact keeps its rows, what one row is called, and the column of its id."""

    file: str
    row: str
    id: str = "id"


ROW_TABLES = {
    "corpus": RowTable("documents.parquet", "document"),
    "tokens": RowTable("documents.parquet", "document"),
    "chats": RowTable("chats.parquet", "conversation"),
    "preferences": RowTable("preferences.parquet", "preference pair"),
    "evalset": RowTable("items.parquet", "item"),
    "evaluation": RowTable("items.parquet", "scored item", "item"),
}
DROPPED = RowTable("dropped.parquet", "dropped document")


def holds_rows(manifest: Manifest) -> bool:
    """Whether an artifact lists its rows by id."""
    table = ROW_TABLES.get(manifest.kind)
    return table is not None and _has(manifest, table.file)


def find_row(store: Store, manifest: Manifest, id: str) -> dict[str, Any] | None:
    """The row with that id in an artifact, as plain values; None if it holds no such row."""
    table = ROW_TABLES.get(manifest.kind)
    return _find(store, manifest, table, id) if table and _has(manifest, table.file) else None


def find_dropped(store: Store, manifest: Manifest, id: str) -> dict[str, Any] | None:
    """The row of a document that a corpus left out, with the reason; None if it did not."""
    if manifest.kind != "corpus" or not _has(manifest, DROPPED.file):
        return None
    return _find(store, manifest, DROPPED, id)


@dataclass(frozen=True)
class Origins:
    """Where the rows of an artifact come from: counts by (source, licence), the largest first."""

    row: str
    rows: int
    by_source: tuple[tuple[str, str, int], ...]
    by_licence: tuple[tuple[str, int], ...]


def origins(store: Store, manifest: Manifest) -> Origins | None:
    """Counts of an artifact's rows by source and licence; None where its rows do not say."""
    table = ROW_TABLES.get(manifest.kind)
    if table is None or not _has(manifest, table.file):
        return None
    import pyarrow.parquet as pq

    path = store.open_file(manifest.digest, table.file)
    with _readable(path), pq.ParquetFile(path) as file:
        if not {"source", "license"} <= set(file.schema_arrow.names):
            return None
        counts: Counter[tuple[str, str]] = Counter()
        for batch in file.iter_batches(columns=["source", "license"]):
            counts.update(zip(batch["source"].to_pylist(), batch["license"].to_pylist(), strict=True))
    licences: Counter[str] = Counter()
    for (_, licence), count in counts.items():
        licences[licence or ""] += count
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return Origins(
        row=table.row,
        rows=sum(counts.values()),
        by_source=tuple((source or "", licence or "", count) for (source, licence), count in ranked),
        by_licence=tuple(sorted(licences.items(), key=lambda item: (-item[1], item[0]))),
    )


def head(path: Path, rows: int) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a Parquet file as plain values, and how many rows it has."""
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=max(rows, 1)), None)
        found = batch.slice(0, rows).to_pylist() if batch is not None else []
        return [{name: plain(value) for name, value in row.items()} for row in found], file.metadata.num_rows


def plain(value: Any) -> Any:
    """A cell as JSON can say it; text that is JSON itself is read."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if isinstance(value, bytes):
        return value.hex()
    return value


def _find(store: Store, manifest: Manifest, table: RowTable, id: str) -> dict[str, Any] | None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = store.open_file(manifest.digest, table.file)
    with _readable(path), pq.ParquetFile(path) as file:
        if table.id not in file.schema_arrow.names:
            raise ArtifactError(f"{manifest.kind} {manifest.digest[:12]} has no column '{table.id}'", where=str(path))
        for group in range(file.num_row_groups):
            at = pc.index(file.read_row_group(group, columns=[table.id])[table.id], id).as_py()
            if at >= 0:
                (row,) = file.read_row_group(group).slice(at, 1).to_pylist()
                return {name: plain(value) for name, value in row.items()}
    return None


def _has(manifest: Manifest, name: str) -> bool:
    return any(entry.path == name for entry in manifest.files)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise ArtifactError(f"this table cannot be read: {error}", where=str(path)) from error
