"""SPDX licence expressions, and whether a list of licences allows them.

    >>> allows(("MIT", "BSD-*"), "MIT OR GPL-3.0-only"), allows(("MIT", "BSD-*"), "MIT AND GPL-3.0-only")
    (True, False)

An expression with OR leaves the choice, so one side is enough; AND asks for both (SPDX specification 2.3, annex D). An
exception (WITH) only permits more, so a licence that is allowed is allowed with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from liuyi.data.licences import UNKNOWN, from_name

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_WILDCARD = re.compile(r"[*?\[]")


def allows(allowed: Sequence[str], expression: str) -> bool:
    """Whether a licence expression, or a licence's usual name, is allowed.

    `allowed` names licences as SPDX identifiers or by their usual names, and families of them with wildcards: `BSD-*`,
    `CC-BY-?.?`. Case does not count. What is no expression is allowed only if it is named as it is, such as `unknown`.
    """
    patterns = [_folded(one) for one in allowed]
    if expression.casefold() in patterns:
        return True
    known = from_name(expression)
    tokens = _TOKEN.findall(expression if known == UNKNOWN else known)
    try:
        value, rest = _either(tokens, patterns)
    except (IndexError, RecursionError):
        return False
    return value and not rest


def _either(tokens: list[str], patterns: list[str]) -> tuple[bool, list[str]]:
    value, tokens = _both(tokens, patterns)
    while tokens and tokens[0].upper() == "OR":
        other, tokens = _both(tokens[1:], patterns)
        value = value or other
    return value, tokens


def _both(tokens: list[str], patterns: list[str]) -> tuple[bool, list[str]]:
    value, tokens = _one(tokens, patterns)
    while tokens and tokens[0].upper() == "AND":
        other, tokens = _one(tokens[1:], patterns)
        value = value and other
    return value, tokens


def _one(tokens: list[str], patterns: list[str]) -> tuple[bool, list[str]]:
    if tokens[0] == "(":
        value, tokens = _either(tokens[1:], patterns)
        return (value, tokens[1:]) if tokens[0] == ")" else (False, tokens)
    name, tokens = tokens[0], tokens[1:]
    exception = tokens[1] if tokens and tokens[0].upper() == "WITH" else ""
    names = [name, f"{name} WITH {exception}"] if exception else [name]
    value = any(fnmatchcase(one.casefold(), pattern) for one in names for pattern in patterns)
    return value, tokens[2:] if exception else tokens


def _folded(allowed: str) -> str:
    known = UNKNOWN if _WILDCARD.search(allowed) else from_name(allowed)
    return (allowed if known == UNKNOWN else known).casefold()
