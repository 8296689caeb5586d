"""What an answer must be before it is worth a judge's time: whole, an answer, and not the prompt again."""

from __future__ import annotations

import re

from liuyi.core.words import split
from liuyi.data.synthesis.ask import Answer

NO_ANSWER = "not answered"
_SHORT_REFUSAL_WORDS = 80
_REFUSAL = re.compile(
    r"^\W*((?:i['’]?m |i am )?sorry\b|i apologi[sz]e|i can(?:no|['’])t|i(?: a|['’])m unable|as an ai\b|unfortunately, i"
    r"|抱歉|很抱歉|对不起|我无法|我不能|作为(?:一个|一名)?(?:人工智能|AI))",
    re.IGNORECASE,
)


def said_of(answer: Answer) -> str:
    """The answer without what a reasoning model thinks before it, also where the chat template opened the thought."""
    thought, closed, said = answer.text.partition("</think>")
    is_thought = closed and (thought.lstrip().startswith("<think>") or "<think>" not in thought)
    return (said if is_thought else answer.text).strip()


def wrong_with(answer: Answer | None) -> str:
    """Why an answer cannot be kept; empty where it can."""
    if answer is None:
        return NO_ANSWER
    if answer.finish == "length":
        return "cut off: longer than max_tokens"
    words = split(said_of(answer))
    if not words:
        return "without a word"
    if len(words) < _SHORT_REFUSAL_WORDS and _REFUSAL.search(said_of(answer)):
        return "a refusal"
    return ""
