"""SPDX licence expressions, and whether a list of licences allows them.

    >>> allows(("MIT", "BSD-*"), "MIT OR GPL-3.0-only"), allows(("MIT", "BSD-*"), "MIT AND GPL-3.0-only")
    (True, False)

An expression with OR leaves the choice, so one side is enough; AND asks for both (SPDX specification 2.3, annex D). An
exception (WITH) only permits more, so a licence that is allowed is allowed with it.
"""

from __future__ import annotations

import re
from collections import deque
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
    tokens = deque(_TOKEN.findall(expression if known == UNKNOWN else known))
    try:
        value = _either(tokens, patterns)
    except (IndexError, ValueError, RecursionError):
        return False
    return value and not tokens


def _either(tokens: deque[str], patterns: list[str]) -> bool:
    """Takes what it understands from the front of the tokens; so do the others."""
    value = _both(tokens, patterns)
    while tokens and tokens[0].upper() == "OR":
        tokens.popleft()
        value = _both(tokens, patterns) or value
    return value


def _both(tokens: deque[str], patterns: list[str]) -> bool:
    value = _one(tokens, patterns)
    while tokens and tokens[0].upper() == "AND":
        tokens.popleft()
        value = _one(tokens, patterns) and value
    return value


def _one(tokens: deque[str], patterns: list[str]) -> bool:
    name = tokens.popleft()
    if name == "(":
        value = _either(tokens, patterns)
        if tokens.popleft() != ")":
            raise ValueError("a bracket is not closed")
        return value
    names = [name]
    if len(tokens) > 1 and tokens[0].upper() == "WITH":
        tokens.popleft()
        names.append(f"{name} WITH {tokens.popleft()}")
    return any(fnmatchcase(one.casefold(), pattern) for one in names for pattern in patterns)


def _folded(allowed: str) -> str:
    known = UNKNOWN if _WILDCARD.search(allowed) else from_name(allowed)
    return (allowed if known == UNKNOWN else known).casefold()
