"""Every change of a kept text, in one place: repeated passages are cut out, personal data is masked, and Chinese is
written in simplified characters. Spans are in characters of the text as it was measured."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from liuyi.data.clean.pii import PLACEHOLDERS
from liuyi.data.select.edits import CUT, Edits

Replacement = tuple[int, int, str]
"""Characters `start` to `end` of a text, and what comes in their place: a placeholder, or nothing."""


def edited(texts: pa.ChunkedArray, attributes: pa.Table, edits: Edits) -> pa.Array:
    """[documents] the texts after all edits asked for. A corpus without an attribute of spans has no such spans.

    Only documents whose language is Chinese are simplified: Japanese has characters of its own that look traditional.
    """
    columns = {name: attributes[name].combine_chunks() for name in edits.spans if name in attributes.column_names}
    marked = sum((span_counts(column) for column in columns.values()), np.zeros(len(texts), np.int64)) > 0
    chinese = np.zeros(len(texts), bool)
    if edits.simplify_chinese:
        chinese = pc.fill_null(pc.equal(attributes["lang"], "zh"), False).to_numpy()
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if not (marked | chinese).any():
        return whole
    changed = [
        _edited(texts[row].as_py(), _spans(columns, row), simplify=bool(chinese[row]))
        for row in np.flatnonzero(marked | chinese).tolist()
    ]
    return pc.replace_with_mask(whole, pa.array(marked | chinese), pa.array(changed, whole.type))


def _spans(columns: Mapping[str, pa.Array], row: int) -> list[Replacement]:
    return [
        (one["start"], one["end"], "" if name == CUT else PLACEHOLDERS[one["kind"]])
        for name, column in columns.items()
        for one in column[row].as_py() or ()
    ]


def _edited(text: str, spans: Sequence[Replacement], *, simplify: bool) -> str:
    from liuyi.data.clean.script import to_simplified

    text = replace(text, spans)
    return to_simplified(text) if simplify else text


def replace(text: str, replacements: Iterable[Replacement]) -> str:
    """`text` with each span replaced, in any order; those that overlap or touch are taken as one.

    A placeholder within a cut goes with it. One that reaches out of the cut stays, since a part of what it hides does.
    """
    parts, position = [], 0
    for start, end, instead in _joined(replacements):
        parts += [text[position:start], instead]
        position = end
    return "".join([*parts, text[position:]])


def cut_ratio(attributes: pa.Table) -> NDArray[np.float64]:
    """[documents] the share of characters in spans that will be cut out."""
    if CUT not in attributes.column_names:
        return np.zeros(attributes.num_rows)
    lost = np.zeros(attributes.num_rows)
    for row in np.flatnonzero(span_counts(attributes[CUT])).tolist():
        cuts = [(one["start"], one["end"], "") for one in attributes[CUT][row].as_py()]
        lost[row] = sum(end - start for start, end, _ in _merged(cuts))
    return np.asarray(lost / np.maximum(attributes["chars"].to_numpy(), 1), np.float64)


def span_counts(spans: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """[documents] how many spans each document has."""
    return np.asarray(pc.fill_null(pc.list_value_length(spans), 0).to_numpy(zero_copy_only=False), np.int64)


def _joined(replacements: Iterable[Replacement]) -> Iterator[Replacement]:
    """The same replacements in order, with text between them."""
    given = list(replacements)
    cuts = list(_merged(one for one in given if not one[2]))
    starts = [start for start, _, _ in cuts]

    def is_cut(one: Replacement) -> bool:
        before = bisect(starts, one[0])
        return before > 0 and one[1] <= cuts[before - 1][1]

    yield from _merged([*cuts, *(one for one in given if one[2] and not is_cut(one))])


def _merged(replacements: Iterable[Replacement]) -> Iterator[Replacement]:
    waiting: Replacement | None = None
    for start, end, instead in sorted(replacements):
        if waiting is None or start > waiting[1]:
            if waiting is not None:
                yield waiting
            waiting = (start, end, instead)
        else:
            waiting = (waiting[0], max(end, waiting[1]), waiting[2] + instead)
    if waiting is not None:
        yield waiting
