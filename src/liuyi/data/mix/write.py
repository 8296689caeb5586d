"""A mixture's stream: documents copied from the sources' tokens, each with where it came from.

Beside the files of every tokens artifact lies `mixture.json`: where each phase begins, which training keeps apart, and
what each source gave. `documents.parquet` has two columns more: `part`, the source's label, and `epoch`. Memory holds
the sources' documents.parquet and a few numbers for each document drawn, never tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from liuyi.core.errors import DataError
from liuyi.data.corpus import DOCUMENTS
from liuyi.data.mix.plan import Plan
from liuyi.data.tokens import ABOUT, TOKENS, About, Tokens, places_schema
from liuyi.train.data import MIXTURE
from liuyi.train.mixture import Drawn, demand_alike, draw

_DOCUMENTS_AT_ONCE = 1024


def write_mixture(
    folder: Path,
    sources: Sequence[Tokens],
    plan: Plan,
    seed: int,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> About:
    """Write the tokens artifact that `plan` describes; `on_progress` hears (documents done, in all).

    Raises DataError where sources were made with different tokenizers, or where no document fits the budget.
    """
    demand_alike(plan.labels, [one.about.vocab_size for one in sources], [one.about.eos_id for one in sources])
    tables = [source.documents for source in sources]
    stretches = draw([table["tokens"].to_numpy() for table in tables], plan.tokens, seed)
    total = sum(len(stretch.row) for stretch in stretches)
    if not total:
        raise DataError(f"no document fits into a budget of {plan.budget} tokens", hint="allow more tokens")
    schema = places_schema().append(pa.field("part", pa.string())).append(pa.field("epoch", pa.int32()))
    starts: list[int] = []
    at = size = documents = 0
    with (folder / TOKENS).open("wb") as file, pq.ParquetWriter(folder / DOCUMENTS, schema, compression="zstd") as rows:
        for stretch in stretches:
            starts.append(at)
            for first in range(0, len(stretch.row), _DOCUMENTS_AT_ONCE):
                part = Drawn(*(column[first : first + _DOCUMENTS_AT_ONCE] for column in asdict(stretch).values()))
                places = _places(tables, part, plan.labels, at, schema)
                for source, offset, count in zip(
                    part.source.tolist(), _offsets(sources, part), places["tokens"].to_pylist(), strict=True
                ):
                    file.write(sources[source].ids[offset : offset + count].tobytes())
                rows.write_table(places)
                at += sum(places["tokens"].to_pylist())
                size += sum(places["bytes"].to_pylist())
                documents += places.num_rows
                on_progress(documents, total)
    first_source = sources[0].about
    about = About(first_source.dtype, at, documents, size, first_source.vocab_size, first_source.eos_id)
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
    (folder / MIXTURE).write_text(json.dumps(_facts(plan, starts), indent=1, ensure_ascii=False), encoding="utf-8")
    return about


def _places(tables: Sequence[pa.Table], part: Drawn, labels: Sequence[str], start: int, schema: pa.Schema) -> pa.Table:
    """The rows of `documents.parquet` for these documents, the first of which begins at `start`."""
    pieces, where = [], []
    for source, table in enumerate(tables):
        here = np.flatnonzero(part.source == source)
        pieces.append(table.select([name for name in schema.names if name in table.column_names]).take(part.row[here]))
        where.append(here)
    joined = pa.concat_tables(pieces, promote_options="default").take(np.argsort(np.concatenate(where)))
    counts = joined["tokens"].to_numpy()
    columns = {
        **{name: joined[name] for name in joined.column_names},
        "offset": pa.array(start + np.cumsum(counts) - counts, pa.int64()),
        "part": pa.array([labels[source] for source in part.source], pa.string()),
        "epoch": pa.array(part.epoch, pa.int32()),
    }
    missing = {name: pa.nulls(len(counts), schema.field(name).type) for name in schema.names if name not in columns}
    return pa.table({**columns, **missing}).select(schema.names).cast(schema)


def _offsets(sources: Sequence[Tokens], part: Drawn) -> list[int]:
    """Where each document begins in the stream of its source."""
    offsets = np.zeros(len(part.row), dtype=np.int64)
    for source, tokens in enumerate(sources):
        here = part.source == source
        offsets[here] = tokens.offsets[part.row[here]]
    return [int(offset) for offset in offsets]


def _facts(plan: Plan, starts: Sequence[int]) -> dict[str, object]:
    phases = [
        {"start": start, "weights": dict(zip(plan.labels, stretch.weights, strict=True))}
        for start, stretch in zip(starts, plan.stretches, strict=True)
    ]
    given = zip(plan.labels, plan.sizes, plan.taken, plan.epochs, strict=True)
    sources = [
        {"label": label, "tokens_there": size, "tokens": round(float(taken)), "epochs": float(epochs)}
        for label, size, taken, epochs in given
    ]
    return {"phases": phases, "sources": sources}
