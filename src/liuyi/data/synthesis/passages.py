"""Passages of documents: pieces of bounded length that end where a paragraph or a sentence does."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def passages(text: str, longest: int) -> Iterator[str]:
    """Pieces of at most `longest` characters: whole paragraphs together, long ones divided between sentences, and only
    a sentence that is too long by itself is cut.
    """
    kept = ""
    for piece, gap in _pieces(text.strip(), longest):
        if kept and len(kept) + len(gap) + len(piece) > longest:
            yield kept
            kept = piece
        else:
            kept = f"{kept}{gap}{piece}" if kept else piece
    if kept:
        yield kept


def _pieces(text: str, longest: int) -> Iterator[tuple[str, str]]:
    """(piece, what stands between it and the one before)."""
    for paragraph in filter(None, map(str.strip, _PARAGRAPH.split(text))):
        gap = "\n\n"
        if len(paragraph) <= longest:
            yield paragraph, gap
            continue
        for sentence in filter(None, _SENTENCE.split(paragraph)):
            for start in range(0, len(sentence), longest):
                yield sentence[start : start + longest], gap
                gap = "" if start + longest < len(sentence) else " " if sentence[-1] in ".!?" else ""
