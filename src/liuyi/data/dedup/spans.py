"""Spans of repeated text, as the attribute `repeated`: characters `start` to `end`, and what they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from liuyi.data.attributes import attribute_schema, read_groups, rows_by, with_columns
from liuyi.data.clean.pii import SPANS
from liuyi.data.corpus import ATTRIBUTES, ROWS_PER_GROUP
from liuyi.data.dedup.ragged import as_lists

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]

REPEATED = "repeated"
DUPLICATE_KIND, CONTAMINATED_BY = "duplicate_kind", "contaminated_by"


def stays(source: Path, documents: int) -> NDArray[np.bool_]:
    """[documents] whether each is neither a duplicate nor contaminated, as far as that was looked for.

    What goes is no original of what is repeated elsewhere.
    """
    import pyarrow.compute as pc

    known = attribute_schema(source).names
    found = np.ones(documents, bool)
    for name, length in ((DUPLICATE_KIND, pc.utf8_length), (CONTAMINATED_BY, pc.list_value_length)):
        if name in known:
            groups = read_groups(source, [name], ATTRIBUTES)
            found &= np.concatenate([found[:0], *(length(group[name]).to_numpy() == 0 for group in groups)])
    return found


def span_lists(owners: Ints, starts: Ints, ends: Ints, kind: str, documents: int) -> pa.ListArray:
    """Spans as one list a document; `owners` names the document of each span, ascending."""
    import pyarrow as pa

    columns = [*(pa.array(np.ascontiguousarray(places)) for places in (starts, ends)), pa.repeat(kind, len(owners))]
    return as_lists(owners, pa.StructArray.from_arrays(columns, fields=list(SPANS.value_type)), documents)


def with_repeated(source: Path, out: Path, spans: Iterator[pa.Array]) -> None:
    """Write the corpus `source` to `out` with `spans`, one list a document, added to what is marked as repeated."""
    import pyarrow as pa

    schema = pa.schema([(REPEATED, SPANS)])
    measured: Iterator[pa.Table] = (pa.table([part], schema=schema) for part in spans)
    if REPEATED in attribute_schema(source).names:
        measured = _joined(source, measured, schema)
    with_columns(source, out, schema, measured)


def _joined(source: Path, added: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    before = rows_by(ROWS_PER_GROUP, read_groups(source, [REPEATED], ATTRIBUTES), schema)
    for old, new in zip(before, rows_by(ROWS_PER_GROUP, added, schema), strict=True):
        both = [(one or []) + (other or []) for one, other in zip(old[0].to_pylist(), new[0].to_pylist(), strict=True)]
        yield pa.table([both], schema=schema)


def in_turn(parts: Sequence[Iterator[pa.Array]]) -> Iterator[pa.Array]:
    """Spans of several searches over the same corpus as one list a document."""
    import pyarrow as pa

    for arrays in zip(*parts, strict=True):
        yield pa.array(
            [[span for spans in row for span in spans] for row in zip(*map(pa.Array.to_pylist, arrays), strict=True)],
            SPANS,
        )


@dataclass
class Counted:
    """How much the spans that go through cover; overlaps count once."""

    documents: int = 0
    marked: int = 0
    """Documents with a span."""
    chars: int = 0

    def through(self, spans: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """The same spans, counted as they pass."""
        for array in spans:
            self.documents += len(array)
            for row in array.to_pylist():
                self.marked += bool(row)
                end = 0
                for start, stop in sorted((span["start"], span["end"]) for span in row):
                    self.chars += max(0, stop - max(start, end))
                    end = max(end, stop)
            yield array
