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
    "bullet_line_fraction",
    "ellipsis_line_fraction",
    "short_line_fraction",
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
_TINY_BYTES, _SHORT_BYTES = 10, 30
_FEW_LINES = 3


def layout(batch: Batch) -> dict[str, Floats]:
    """The share of characters in lines of code, of tables or rules, of bare links, in lines cut off by `…`, and in list
    items that are no sentences; the share of lines (by number) that end like sentences, of which FineWeb (Penedo et al.
    2024) asks 0.12, and of those shorter than 10 bytes, which is three Han characters.

    By number of lines, as published: `bullet_line_fraction` (Gopher: 0.9 at most) and `ellipsis_line_fraction` (0.3),
    `short_line_fraction` of lines of 30 bytes at most, which is ten Han characters (FineWeb: 0.67). Texts of fewer than
    three lines have no `ellipsis_lines`: a sentence may well trail off.
    """
    lines = batch.lines
    count = batch.per_document(lines)
    chars = batch.per_document(lines, lines.chars)

    def share(pattern: str) -> Floats:
        return ratio(batch.per_document(lines, lines.chars * _matches(lines, pattern)), chars)

    ends, bullets, trailing = (_matches(lines, pattern) for pattern in (_TERMINAL, _BULLET, _ELLIPSIS))
    items = bullets & ~ends & (lines.chars <= _LONGEST_ITEM_CHARS)
    size = pc.binary_length(lines.texts).to_numpy(zero_copy_only=False)
    rows = _matches(lines, _TABLE) | (_matches(lines, _COLUMNS) & (size <= _LONGEST_ROW_BYTES))
    return {
        "code_lines": share(_CODE),
        "table_lines": ratio(batch.per_document(lines, lines.chars * rows), chars),
        "bullet_lines": ratio(batch.per_document(lines, lines.chars * items), chars),
        "ellipsis_lines": ratio(batch.per_document(lines, lines.chars * trailing) * (count >= _FEW_LINES), chars),
        "terminal_lines": ratio(batch.per_document(lines, ends), count),
        "short_lines": ratio(batch.per_document(lines, size < _TINY_BYTES), count),
        "link_lines": share(_LINK),
        "bullet_line_fraction": ratio(batch.per_document(lines, bullets), count),
        "ellipsis_line_fraction": ratio(batch.per_document(lines, trailing), count),
        "short_line_fraction": ratio(batch.per_document(lines, size <= _SHORT_BYTES), count),
    }


def _matches(lines: Pieces, pattern: str) -> np.ndarray:
    found = pc.match_substring_regex(lines.distinct, pattern).to_numpy(zero_copy_only=False)
    return np.asarray(found, bool)[lines.codes]
