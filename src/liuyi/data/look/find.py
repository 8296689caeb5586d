"""Finding documents to look at: by id, row, reason or condition, near a threshold, or by chance."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from liuyi.core.errors import DataError, did_you_mean
from liuyi.data.clean.pii import PLACEHOLDERS
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS
from liuyi.data.look.judge import Evidence, Judge
from liuyi.data.look.view import Batch, View
from liuyi.data.select.edit import replace
from liuyi.data.select.edits import MASKED
from liuyi.data.select.rules import KEPT, RULES

Mask = NDArray[np.bool_]
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    ">": pc.greater,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Condition:
    """A comparison of a column with a value; a list, such as `pii`, is compared by its length."""

    name: str
    comparison: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """`lang=zh`, `words>=500`, `pii>0`. Raises DataError for anything else."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise DataError(f"'{text}' is no condition", hint="such as lang=zh, words>=500 or pii>0")
        name, comparison, value = match.groups()
        return cls(name, "=" if comparison == "==" else comparison, value)

    def holds(self, batch: Batch) -> Mask:
        """[documents] whether it holds; a document without the value never fulfils it."""
        known = batch.attributes if self.name in batch.attributes.column_names else batch.documents
        if self.name not in known.column_names:
            names = {*batch.attributes.column_names, *batch.documents.column_names}
            raise DataError(f"there is no column '{self.name}'", hint=did_you_mean(self.name, names))
        column = known[self.name]
        if pa.types.is_list(column.type):
            column = pc.list_value_length(column)
        try:
            value = pa.scalar(self.value).cast(column.type)
        except pa.ArrowInvalid as error:
            raise DataError(f"'{self.value}' is no {column.type} to compare '{self.name}' with") from error
        if self.comparison not in ("=", "!=") and not pa.types.is_primitive(column.type):
            raise DataError(f"'{self.name}' is text: compare it by = or !=")
        return np.asarray(pc.fill_null(_COMPARE[self.comparison](column, value), False).to_numpy(), bool)


@dataclass(frozen=True)
class Query:
    """Which documents are meant; what is left out does not matter."""

    id: str = ""
    """The beginning of an id."""
    row: int | None = None
    """A place in the corpus; nothing else is asked then."""
    reason: str = ""
    kept: bool | None = None
    near: str = ""
    """A threshold: documents on both sides of it that no other rule drops."""
    where: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A document with all that is known of it."""

    row: int
    document: Mapping[str, Any]
    attributes: Mapping[str, Any]
    """Empty where nothing was measured."""
    evidence: tuple[Evidence, ...]
    """The rules that drop it, the one that gives the reason first; empty where it is kept."""

    @property
    def masked_text(self) -> str:
        """The text with placeholders for personal data: what pages show, since they are passed on."""
        spans = self.attributes.get(MASKED) or ()
        return replace(self.document["text"], [(one["start"], one["end"], PLACEHOLDERS[one["kind"]]) for one in spans])


def find(view: View, query: Query, count: int, seed: int = 0) -> list[int]:
    """The rows of up to `count` documents that a query means.

    Near a threshold they are the nearest, from both sides in turn; otherwise they are drawn by a hash of id and seed,
    so the same ones are drawn again.
    Raises DataError for an id, reason, column or threshold that is not known, and where nothing was measured.
    """
    if query.reason and query.reason not in {rule.reason for rule in RULES}:
        raise DataError(
            f"no rule gives the reason '{query.reason}'", hint=did_you_mean(query.reason, (r.reason for r in RULES))
        )
    if view.judge is None and (query.reason or query.near or query.kept is False):
        raise DataError("the corpus has no attributes, so nothing is dropped", hint="run data.clean on it first")
    if query.row is not None:
        return [query.row]
    if query.near:
        return _near(view, query, count)
    columns = [condition.name for condition in query.where]
    candidates = (
        (_draw(id, seed), batch.start + int(row))
        for batch in view.batches(_known(view, columns))
        for chosen in (_chosen(view, batch, query),)
        for row, id in zip(
            np.flatnonzero(chosen), batch.documents["id"].filter(pa.array(chosen)).to_pylist(), strict=True
        )
    )
    found = [row for _, row in heapq.nsmallest(count, candidates)]
    if query.id and not found:
        raise DataError(f"the corpus holds no document '{query.id}'", hint="give an id or its beginning")
    return found


def see(view: View, rows: Iterable[int]) -> list[Seen]:
    """The documents at these rows, in this order."""
    wanted = list(rows)
    documents = _rows_of(view.corpus.file(DOCUMENTS), wanted)
    if view.judge is None:
        return [Seen(row, documents[row].to_pylist()[0], {}, ()) for row in wanted]
    attributes = _rows_of(view.corpus.file(ATTRIBUTES), wanted)
    return [_seen(view.judge, row, documents[row], attributes[row]) for row in wanted]


def _seen(judge: Judge, row: int, document: pa.Table, attributes: pa.Table) -> Seen:
    (values,) = attributes.drop_columns(["id"]).to_pylist()
    evidence = tuple(judge.evidence(attributes, document["license"]))
    return Seen(row, document.to_pylist()[0], values, evidence)


def _rows_of(path: Any, rows: Iterable[int]) -> dict[int, pa.Table]:
    """Each row as a table of its own; a row group is read once. Raises DataError for a row that is not there."""
    found: dict[int, pa.Table] = {}
    ahead = sorted(set(rows))
    with pq.ParquetFile(path) as file:
        if ahead and not 0 <= ahead[0] <= ahead[-1] < file.metadata.num_rows:
            raise DataError(
                f"there is no row {ahead[0] if ahead[0] < 0 else ahead[-1]}",
                hint=f"the corpus has {file.metadata.num_rows:,} documents, from row 0",
            )
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            here = [row for row in ahead if start <= row < end]
            if here:
                table = file.read_row_group(group)
                found |= {row: table.slice(row - start, 1) for row in here}
            start = end
    return found


def _chosen(view: View, batch: Batch, query: Query) -> Mask:
    chosen = view.is_meant(batch)
    if query.id:
        chosen = chosen & np.asarray(pc.starts_with(batch.documents["id"], query.id).to_numpy(), bool)
    if query.reason:
        chosen = chosen & (batch.reasons == query.reason)
    if query.kept is not None:
        chosen = chosen & ((batch.reasons == KEPT) == query.kept)
    for condition in query.where:
        chosen = chosen & condition.holds(batch)
    return np.asarray(chosen, bool)


def _near(view: View, query: Query, count: int) -> list[int]:
    """Rows nearest to a threshold, in turn just kept and just dropped."""
    kept: list[tuple[float, int]] = []
    dropped: list[tuple[float, int]] = []
    for batch in view.batches(_known(view, [condition.name for condition in query.where])):
        if view.judge is None or batch.judgement is None:
            continue
        measure = view.judge.measure(query.near, batch.attributes, batch.documents["license"])
        distance = np.abs(measure.values(batch.attributes) - measure.limit)
        chosen = _chosen(view, batch, query) & ~batch.judgement.without(measure.reasons) & np.isfinite(distance)
        for nearest, side in ((kept, batch.reasons == KEPT), (dropped, batch.reasons != KEPT)):
            here = np.flatnonzero(chosen & side)
            nearest += [(float(distance[row]), batch.start + int(row)) for row in here]
            nearest[:] = heapq.nsmallest(count, nearest)
    turns = _in_turn(kept, dropped)
    return [row for _, row in turns][:count]


def _in_turn(first: list[tuple[float, int]], second: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    for number in range(max(len(first), len(second))):
        yield from first[number : number + 1]
        yield from second[number : number + 1]


def _known(view: View, names: Iterable[str]) -> list[str]:
    """Those of the names that are columns of the documents."""
    columns = set(pq.read_schema(view.corpus.file(DOCUMENTS)).names)
    return [name for name in names if name in columns]


def _draw(id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()
