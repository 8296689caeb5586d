"""Run all filters over a corpus with Daft: documents in, a table of attributes out, duplicates over the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from liuyi.core.errors import DataError
from liuyi.data.clean import filters
from liuyi.data.corpus import DOCUMENTS, read_documents
from liuyi.data.dedup.groups import by_preference, find_duplicates
from liuyi.data.dedup.jaccard import Jaccard
from liuyi.data.dedup.minhash import HASHES, Signatures, signature
from liuyi.data.engine import engine
from liuyi.data.pool import available_cores

_ROWS_PER_BATCH = 256


def attributes(
    folder: Path,
    *,
    jaccard: float,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> pa.Table:
    """The attributes of every document of a corpus, in the order of `documents.parquet`.

    Beside what the filters give: `duplicate_of` (the id of the document that stays in this one's place, empty where it
    stays itself), `duplicate_kind` (`exact` or `near`) and `duplicate_similarity`. The result does not depend on the
    number of workers. Raises DataError where ids are not unique.
    """
    ids = read_documents(folder, ["id"])["id"].combine_chunks()
    if pc.count_distinct(ids).as_py() != len(ids):
        raise DataError("the corpus holds several documents of the same id", where=str(folder / DOCUMENTS))
    measured, signatures = _measure(folder, ids, workers or available_cores(), on_progress)
    return _with_duplicates(folder, measured, signatures, jaccard)


def _measure(
    folder: Path, ids: pa.Array, workers: int, on_progress: Callable[[int], None]
) -> tuple[pa.Table, Signatures]:
    if not len(ids):
        empty = pa.schema([("id", pa.string()), *filters.schema()]).empty_table()
        return empty, np.zeros((0, HASHES), np.uint32)
    daft = engine()
    text = daft.col("text")
    frame = daft.read_parquet(str(folder / DOCUMENTS)).select("id", "text")
    frame = frame.select("id", _filters_udf(daft, workers)(text), signature(daft, text).alias("signature"))
    parts, done = [], 0
    for batch in frame.to_arrow_iter():
        parts.append(batch)
        done += batch.num_rows
        on_progress(done)
    table = pa.Table.from_batches(parts)
    table = table.take(pc.index_in(ids, value_set=table["id"].combine_chunks().cast(ids.type)))
    flat = table["signature"].combine_chunks().flatten()
    measured = table.select(filters.schema().names).cast(filters.schema())
    return measured.add_column(0, "id", ids), flat.to_numpy().astype(np.uint32).reshape(len(ids), HASHES)


def _filters_udf(daft: ModuleType, workers: int) -> Callable[[Any], Any]:
    """All filters as one Daft function, in `workers` processes: the views that they share are made once a batch."""
    struct = daft.DataType.from_arrow_type(pa.struct(list(filters.schema())))

    @daft.cls(use_process=True, max_concurrency=workers)
    class Filters:
        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=struct, unnest=True, batch_size=_ROWS_PER_BATCH
        )
        def measure(self, text: Any) -> pa.Array:
            from liuyi.data.clean import filters

            table = filters.measure(text.to_arrow())
            return pa.StructArray.from_arrays(
                [column.combine_chunks() for column in table.columns], fields=list(table.schema)
            )

    measure: Callable[[Any], Any] = Filters().measure
    return measure


def _with_duplicates(folder: Path, measured: pa.Table, signatures: Signatures, threshold: float) -> pa.Table:
    documents = read_documents(folder, ["text", "url"])
    texts = documents["text"].combine_chunks()
    ids = measured["id"].to_pylist()
    found = find_duplicates(
        by_preference(measured["chars"].to_numpy(), documents["url"].to_pylist(), ids),
        measured["fingerprint"].to_pylist(),
        signatures,
        Jaccard(lambda row: texts[row].as_py()),
        threshold=threshold,
    )
    stays = found.representative == np.arange(len(ids))
    columns = {
        "duplicate_of": ["" if own else ids[kept] for own, kept in zip(stays, found.representative, strict=True)],
        "duplicate_kind": np.where(stays, "", np.where(found.exact, "exact", "near")).tolist(),
        "duplicate_similarity": found.similarity,
    }
    for name, values in columns.items():
        measured = measured.append_column(name, pa.array(values))
    return measured
