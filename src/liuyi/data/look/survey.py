"""One pass over a corpus: what is kept and dropped, in all and by source, licence and language, and a sample of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from liuyi.data.corpus import DOCUMENTS
from liuyi.data.look.view import Batch, View
from liuyi.data.select.rules import KEPT, RULES

SAMPLED_GROUPS = 64
"""Row groups, evenly spread, whose attributes are held: at most 65,536 documents."""
GROUPINGS = ("source", "license", "language")
UNSURE = "unsure"

_KEYS = ("reason", *GROUPINGS)
_TABLES_HELD = 64
_LIKELY = 0.3
"""A language that was detected with less is a guess; selection writes it down from here on, too."""


@dataclass(frozen=True)
class Tally:
    """How many documents, and how many UTF-8 bytes of text."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.documents + other.documents, self.bytes + other.bytes)


@dataclass(frozen=True)
class Sample:
    """Documents of evenly spread row groups: their rows in the corpus, attributes and licences."""

    rows: NDArray[np.int64]
    attributes: pa.Table
    licences: pa.ChunkedArray


@dataclass
class Survey:
    """What a corpus holds and what selection says of it."""

    total: Tally = Tally()
    by_reason: dict[str, Tally] = field(default_factory=dict)
    """Reason → what was dropped for it, in the order of the rules; the empty reason is what was kept."""
    by_group: dict[str, dict[str, tuple[Tally, Tally]]] = field(default_factory=dict)
    """Grouping → value → (all, kept), the most bytes first."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """Id of the document that stays → how many documents duplicate it."""
    sample: Sample | None = None
    """None where nothing was measured."""

    @property
    def kept(self) -> Tally:
        return self.by_reason.get(KEPT, Tally())


def survey(view: View) -> Survey:
    """Read every attribute once, and texts only where their size was not measured.

    Memory holds the sample, an entry for each combination of reason, source, licence and language, and one for each
    group of duplicates.
    """
    found = Survey()
    has_bytes = view.judge is not None and "bytes" in pq.read_schema(view.corpus.file("attributes.parquet")).names
    stride = max(1, -(-pq.read_metadata(view.corpus.file(DOCUMENTS)).num_row_groups // SAMPLED_GROUPS))
    tables: list[pa.Table] = []
    held: list[Batch] = []
    for number, batch in enumerate(view.batches(("source", "lang", *(() if has_bytes else ("text",))))):
        meant = view.is_meant(batch)
        tables.append(_counts(batch, meant))
        if len(tables) == _TABLES_HELD:
            tables = [_merged(tables)]
        if "duplicate_of" in batch.attributes.column_names:
            duplicates = batch.attributes["duplicate_of"]
            found.duplicates.update(duplicates.filter(pc.not_equal(duplicates, "")).to_pylist())
        if batch.judgement is not None and number % stride == 0:
            held.append(batch)
    if tables:
        _fill(found, _merged(tables))
    if held:
        found.sample = Sample(
            np.concatenate([np.arange(batch.start, batch.start + batch.documents.num_rows) for batch in held]),
            pa.concat_tables([batch.attributes for batch in held]).combine_chunks(),
            pa.chunked_array([chunk for batch in held for chunk in batch.documents["license"].chunks], pa.string()),
        )
    return found


def _counts(batch: Batch, meant: NDArray[np.bool_]) -> pa.Table:
    documents = batch.documents
    columns = {
        "reason": pa.array(batch.reasons.tolist(), pa.string()),
        "source": documents["source"],
        "license": documents["license"],
        "language": _languages(batch),
        "bytes": batch.attributes["bytes"].cast(pa.int64())
        if "bytes" in batch.attributes.column_names
        else pc.binary_length(documents["text"]).cast(pa.int64()),
        "documents": pa.array(np.ones(documents.num_rows, np.int64)),
    }
    return _merged([pa.table(columns).filter(pa.array(meant))])


def _languages(batch: Batch) -> pa.ChunkedArray:
    """As detected, where that is more than a guess; as the source said, where nothing was measured."""
    if "lang_score" not in batch.attributes.column_names or batch.judgement is None:
        return pc.if_else(pc.equal(batch.documents["lang"], ""), UNSURE, batch.documents["lang"])
    sure = pc.greater_equal(batch.attributes["lang_score"], _LIKELY)
    return pc.if_else(sure, batch.attributes["lang"], UNSURE)


def _merged(tables: list[pa.Table]) -> pa.Table:
    columns = [*_KEYS, "bytes", "documents"]
    joined = pa.concat_tables([table.select(columns) for table in tables])
    grouped = joined.group_by(list(_KEYS)).aggregate([("bytes", "sum"), ("documents", "sum")])
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])


def _fill(found: Survey, counts: pa.Table) -> None:
    by_reason: dict[str, Tally] = {}
    groups: dict[str, dict[str, tuple[Tally, Tally]]] = {name: {} for name in GROUPINGS}
    for row in counts.to_pylist():
        tally = Tally(row["documents"], row["bytes"])
        kept = tally if row["reason"] == KEPT else Tally()
        found.total += tally
        by_reason[row["reason"]] = by_reason.get(row["reason"], Tally()) + tally
        for name, known in groups.items():
            value = row[name] or "unknown"
            before = known.get(value, (Tally(), Tally()))
            known[value] = (before[0] + tally, before[1] + kept)
    order = [KEPT, *(rule.reason for rule in RULES)]
    found.by_reason = {reason: by_reason[reason] for reason in order if reason in by_reason}
    found.by_group = {
        name: dict(sorted(known.items(), key=lambda item: (-item[1][0].bytes, item[0])))
        for name, known in groups.items()
    }
