"""Checking answers: the last line of a solution against what the problem's verifier, or mathematics, says is right."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.synthesis.problems import Problem, reasoning_gym

LONGEST_RESULT_CHARS = 300
_CHECK_S = 2
_BOXED = re.compile(r"\\boxed\s*\{")
_LINE = re.compile(
    r"^(?:[^\w\n]*(?:final\s+)?(?:answer|答案)[^\w\n]*?[:：](?=.*[^\s*_`])|#### )(.+)$"
    r"|^[^\w\n]*(?:final\s+)?(?:answer|答案)[^\w\n]*\n\s*(\S.*)\Z",
    re.IGNORECASE | re.MULTILINE,
)
_PHRASE = re.compile(
    r"(?:\b(?:answer|result)\b[^\n:：]{0,100}?\bis\b|(?:答案|结果)(?:是|为))\s*[:：]?(.+)$",
    re.IGNORECASE | re.MULTILINE,
)
_SHORT_CHARS = 40
_WRAPPED = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def final_result(text: str) -> str | None:
    """What a solution gives as its result: what is in its last `\\boxed{…}`, on its last line `Answer: …` (or `#### …`,
    as GSM8K has it), or on the last line after the heading "Answer"; without any, what follows its last "the answer
    is", or all of it if it is one short line. None if it gives none.

    >>> final_result("2 + 2 is 4.\\n**Answer:** 4."), final_result(r"so \\boxed{\\frac{1}{2}}.")
    ('4', '\\\\frac{1}{2}')
    """
    text = text.strip()
    boxes, lines = list(_BOXED.finditer(text)), list(_LINE.finditer(text))
    if boxes and (not lines or boxes[-1].start() > lines[-1].start()):
        found = _braced(text, boxes[-1].end())
    elif lines or (lines := list(_PHRASE.finditer(text))):
        line = next(filter(None, lines[-1].groups()))
        box = _BOXED.search(line)
        found = _braced(line, box.end()) if box else line
    else:
        found = text if len(text) <= _SHORT_CHARS and "\n" not in text and not text.endswith((":", "：")) else ""
    found = _bare(found)
    return found if found and len(found) <= LONGEST_RESULT_CHARS else None


def _bare(result: str) -> str:
    """A result without the full stop behind it and the marks of Markdown and LaTeX around it."""
    bare = result.strip().rstrip(".。").strip("*`$ ").rstrip(".。").strip()
    wrapped = _WRAPPED.fullmatch(bare)
    return next(filter(None, wrapped.groups()), "").strip() if wrapped else bare


def is_right(problem: Problem, result: str) -> bool:
    """Whether a result is the problem's answer."""
    if not problem.task:
        return same_mathematics(problem.reference, result)
    if _same_number(problem.reference, result):
        return True
    try:
        return bool(_verifier(problem.task)(result, dict(problem.entry)) >= 1)
    except Exception:  # verifiers parse what models write, and some of them fail on it
        return False


def same_mathematics(reference: str, result: str) -> bool:
    """Whether two results are the same to math-verify: numbers, fractions, expressions, sets, intervals.

    The reference may be a whole solution that names its result. What takes longer than two seconds is not the same;
    the time is kept by a signal, so this has to run in a process's main thread.
    """
    parse, verify = _math_verify()
    wanted = parse(_as_mathematics(final_result(reference) or reference), parsing_timeout=_CHECK_S)
    found = parse(_as_mathematics(result), parsing_timeout=_CHECK_S)
    return bool(wanted and found and verify(wanted, found, timeout_seconds=_CHECK_S))


def _as_mathematics(result: str) -> str:
    return f"${result.strip().strip('$')}$"


def _braced(text: str, start: int) -> str:
    """What stands from `start` to the brace that closes there; everything if none does."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return text[start:]


def _same_number(reference: str, result: str) -> bool:
    """Whether both are the same number in figures, with or without separators of thousands."""
    if not (_NUMBER.fullmatch(reference.strip()) and _NUMBER.fullmatch(result)):
        return False
    try:
        return Decimal(reference.strip().replace(",", "")) == Decimal(result.replace(",", ""))
    except InvalidOperation:
        return False


@cache
def _verifier(task: str) -> Callable[[str, dict[str, Any]], float]:
    score: Callable[[str, dict[str, Any]], float] = reasoning_gym().create_dataset(task, seed=0, size=1).score_answer
    return score


@cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., bool]]:
    try:
        from math_verify import parse, verify
    except ImportError:
        raise DataError("own problems are checked by math-verify", hint="pip install 'liuyi[synthesis]'") from None
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it reports whatever a model writes that is no formula
    return parse, verify
