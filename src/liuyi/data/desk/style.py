"""How people write requests: capital letters, final marks, a polite word before or after. The answer stays the same."""

from __future__ import annotations

import random
import re

from liuyi.data.desk.facility import Language

_BEFORE = {
    "en": ("please ", "could you ", "can you ", "can you please ", "hey, ", "ok, "),
    "zh": ("请", "麻烦", "请帮我", "麻烦你", "帮我", "你好，"),
}
_BEFORE_QUESTION = {"en": ("hey, ", "excuse me, "), "zh": ("请问", "你好，", "请问一下")}
_AFTER = {"en": (" please", ", please", " thanks", ", thank you"), "zh": ("，谢谢", "谢谢")}
_QUESTION = {
    "en": re.compile(
        r"^(is|are|what|whats|which|how|hows|who|where|wheres|do|any|some|status|time|tell)\b|^(what's|how's|where's)"
    ),
    "zh": re.compile(r"吗|什么|几|多少|哪|谁|是不是|是否|有没有|怎么样|如何|多久|呢$|啥"),
}


def is_question(text: str, language: Language) -> bool:
    """Whether the sentence asks for something instead of ordering it."""
    return bool(_QUESTION[language].search(text.lower()))


def dress(text: str, language: Language, rng: random.Random, *, free_text: bool) -> str:
    """The sentence as somebody might type it. Free text keeps its end: a word more there would change the answer."""
    question = is_question(text, language)
    if not free_text:
        if rng.random() < 0.10:
            before = rng.choice((_BEFORE_QUESTION if question else _BEFORE)[language])
            text = before + text
        elif rng.random() < 0.05:
            text += rng.choice(_AFTER[language])
        if rng.random() < 0.15:
            text += {"en": "?" if question else ".", "zh": "？" if question else "。"}[language]
    if language == "en" and rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text
