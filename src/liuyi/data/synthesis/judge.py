"""A model as a judge (Zheng et al. 2023, arXiv 2306.05685): a rubric, a grade from 1 to 5, and the reason, as JSON."""

from __future__ import annotations

import json
from typing import Any

GRADES = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 300},
        "grade": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
    },
    "required": ["reason", "grade"],
    "additionalProperties": False,
}
"""The reason comes first, so that the grade follows from it."""
MAX_TOKENS = 400


def read_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in an answer, whatever stands around it; None if there is none.

    >>> read_object('Here it is: ```json {"grade": 4}```')
    {'grade': 4}
    """
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(16):
        if at < 0:
            return None
        try:
            value, _end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        return value if isinstance(value, dict) else None
    return None


def read_grade(text: str) -> int | None:
    """The grade in a judge's answer, a whole number from 1 to 5; None where the answer does not give one."""
    found = read_object(text)
    grade = found.get("grade") if found else None
    return grade if isinstance(grade, int) and not isinstance(grade, bool) and 1 <= grade <= 5 else None
