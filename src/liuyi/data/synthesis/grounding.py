"""Whether a text rests on a passage, as far as words can tell."""

from __future__ import annotations

import re

from liuyi.core.words import fold, split

_NUMBER = re.compile(r"\d[\d,.]*\d")


def support(text: str, passage: str) -> float:
    """The share of a text's different words that the passage has; 0 for a text without words."""
    words = set(split(text))
    return len(words & set(split(passage))) / len(words) if words else 0.0


def strange_numbers(text: str, passage: str) -> list[str]:
    """Numbers of two digits and more that a text has and the passage does not, however they are grouped.

    >>> strange_numbers("It has 1200 seats and 45 rows.", "The hall has 1,200 seats.")
    ['45']
    """
    known = {_plain(number) for number in _NUMBER.findall(fold(passage))}
    return [number for number in _NUMBER.findall(fold(text)) if _plain(number) not in known]


def _plain(number: str) -> str:
    return number.replace(",", "")
