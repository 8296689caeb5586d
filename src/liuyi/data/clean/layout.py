"""What the lines of a document are: prose, code, tables, lists. Shares are of characters: short lines weigh little."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from liuyi.data.clean.batch import Batch, Floats, Pieces, ratio

ATTRIBUTES = (
    "code_lines",
    "table_lines",
    "bullet_lines",
    "ellipsis_lines",
    "terminal_lines",
    "short_lines",
    "link_lines",
)

_CODE = (
    r"^(?:>>>|\.\.\. |\$ |In \[\d+\]|def |class |import |from [\w.]+ import |return |#include|@\w|\}|\{)"
    r"|^[\w.\[\]]+ ?(?:=|\+=|->) ?\S|^[\w.]+\([^)]*\)?$|[;{]$"
)
_TABLE = "^[\u2500-\u257f]|" r"^[|+\-=~^*_#.:\s]{3,}$|^\|.*\||\s\|.*\s\|(?:\s|$)|^(?:[-+]?[\d.,eE%]+[\s|,;]+){2,}"
_COLUMNS = r"(?:\S+\s{3,}){3,}|\t.*\t"
_BULLET = r"^(?:[-*+•●·▪◦※◆■★]|\d{1,3}[.)、]|[（(][\d一二三四五六七八九十]{1,3}[)）])\s*\S"
_ELLIPSIS = r"(?:\.\.\.|…|……)$"
_TERMINAL = r"[.!?。！？…;；:：][\"'”’)）」』]*$"
_LINK = r"^\W*(?:https?://|www\.)\S+\W*$|^\[[^\]]*\]\([^)]*\)$"
_LONGEST_ITEM_CHARS = 60
_LONGEST_ROW_BYTES = 160
"""Longer lines with gaps are prose whose spaces were doubled."""
_SHORT_BYTES = 10


def layout(batch: Batch) -> dict[str, Floats]:
    """The share of characters in lines of code, of tables or rules, of bare links, in lines cut off by `…`, and in list
    items that are no sentences; the share of lines (by number) that end like sentences, and of those shorter than 10
    bytes, which is three Han characters."""
    lines = batch.lines
    count = batch.per_document(lines)
    chars = batch.per_document(lines, lines.chars)

    def share(pattern: str) -> Floats:
        return ratio(batch.per_document(lines, lines.chars * _matches(lines, pattern)), chars)

    ends = _matches(lines, _TERMINAL)
    items = _matches(lines, _BULLET) & ~ends & (lines.chars <= _LONGEST_ITEM_CHARS)
    size = pc.binary_length(lines.texts).to_numpy(zero_copy_only=False)
    rows = _matches(lines, _TABLE) | (_matches(lines, _COLUMNS) & (size <= _LONGEST_ROW_BYTES))
    return {
        "code_lines": share(_CODE),
        "table_lines": ratio(batch.per_document(lines, lines.chars * rows), chars),
        "bullet_lines": ratio(batch.per_document(lines, lines.chars * items), chars),
        "ellipsis_lines": share(_ELLIPSIS),
        "terminal_lines": ratio(batch.per_document(lines, ends), count),
        "short_lines": ratio(batch.per_document(lines, size < _SHORT_BYTES), count),
        "link_lines": share(_LINK),
    }


def _matches(lines: Pieces, pattern: str) -> np.ndarray:
    found = pc.match_substring_regex(lines.distinct, pattern).to_numpy(zero_copy_only=False)
    return np.asarray(found, bool)[lines.codes]
