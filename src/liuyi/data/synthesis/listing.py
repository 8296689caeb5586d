"""Reading what models write when they are asked for a list, or for parts under headings."""

from __future__ import annotations

import re

_POINT = re.compile(r"^\s*(?:(?P<number>(?:\*\*)?\(?\d{1,3}[.):、．](?!\d)(?:\*\*)?)|[-*•](?=\s|$))\s*(?P<text>.*)$")


def read_list(text: str) -> list[str]:
    """The points of a numbered list, or of a bulleted one; lines that follow a point belong to it, bullets among the
    points of a numbered list too, and what stands before the first is not one.

    >>> read_list("Sure:\\n1. Name a tree.\\n2) Add these:\\n   2 and 3")
    ['Name a tree.', 'Add these:\\n   2 and 3']
    """
    points: list[list[str]] = []
    numbered = False
    for line in text.splitlines():
        found = _POINT.match(line)
        if found and (found["number"] or not numbered):
            numbered = numbered or bool(found["number"])
            points.append([found["text"]])
        elif points:
            points[-1].append(line)
    return [point for point in (_without_bold("\n".join(lines).strip()) for lines in points) if point]


def read_parts(text: str, names: tuple[str, ...]) -> dict[str, str] | None:
    """What stands after each of the headings `NAME:`, in their order, each at the beginning of a line.

    None where one is missing or has nothing after it.

    >>> read_parts("QUESTION: Why?\\nANSWER: Because\\nit is.", ("QUESTION", "ANSWER"))
    {'QUESTION': 'Why?', 'ANSWER': 'Because\\nit is.'}
    """
    headings: list[re.Match[str]] = []
    for name in names:
        pattern = re.compile(rf"^[^\w\n]*{re.escape(name)}[^\w\n:：]*[:：]\**", re.MULTILINE | re.IGNORECASE)
        found = pattern.search(text, headings[-1].end() if headings else 0)
        if found is None:
            return None
        headings.append(found)
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    parts = [_without_bold(text[heading.end() : end].strip()) for heading, end in zip(headings, ends, strict=True)]
    return dict(zip(names, parts, strict=True)) if all(parts) else None


def _without_bold(text: str) -> str:
    """The text without Markdown's stars, where they are around all of it."""
    inside = text[2:-2]
    return inside.strip() if text.startswith("**") and text.endswith("**") and "**" not in inside else text
