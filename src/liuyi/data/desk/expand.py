"""From a template to sentences: a seeded walk through its alternatives, optional parts, permutations and lists."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import DataError
from liuyi.data.desk.answers import answer
from liuyi.data.desk.facility import Facility, Phrases
from liuyi.data.desk.templates import Grammar, Template

if TYPE_CHECKING:
    from hassil.expression import Expression

_LIGHT_WORDS = {"light", "lights", "lighting", "lamp", "lamps"}
_TYPICAL_SHARE = 0.8
_TYPICAL = {
    "temperature": (16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28),
    "color_temperature": tuple(range(2000, 6600, 100)),
    "timer_hours": (1, 2, 3, 4, 5, 6, 8, 10, 12, 24),
    "timer_minutes": (1, 2, 3, 4, 5, 7, 8, 10, 12, 15, 18, 20, 25, 30, 35, 40, 45, 50, 55, 60, 90),
    "timer_seconds": (5, 10, 15, 20, 25, 30, 40, 45, 50, 55, 60, 90),
}


@dataclass(frozen=True)
class Sentence:
    """One sentence of a template, and the answer that belongs to it."""

    text: str
    answer: str
    template: Template
    free_text: bool
    """Whether it holds free text, where a word more or less would change the answer."""


@dataclass
class _Walk:
    rng: random.Random
    slots: dict[str, Any]
    rules_used: set[str] = field(default_factory=set)
    free_text: bool = False


class Expander:
    """Draws sentences from the templates of one grammar."""

    def __init__(self, grammar: Grammar, facility: Facility, number_words: float) -> None:
        """`number_words` is the share of numbers that are written in words instead of digits."""
        from hassil.parse_expression import parse_sentence

        self._grammar = grammar
        self._facility = facility
        self._number_words = number_words
        self._parse = cache(lambda text: parse_sentence(text).expression)

    def draw(self, template: Template, rng: random.Random) -> Sentence | None:
        """One sentence; None where the walk made something that nobody would say."""
        walk = _Walk(rng, dict(template.slots))
        text = self._walk(self._parse(template.text), template, walk)
        text = _tidy(text, self._grammar.language)
        if not _natural(text, self._grammar.language):
            return None
        if _all_of_where(template, walk):
            return None
        return Sentence(text, answer(template.intent, walk.slots), template, walk.free_text)

    def _walk(self, node: Expression, template: Template, walk: _Walk) -> str:
        from hassil.expression import Alternative, ListReference, Permutation, RuleReference, Sequence, TextChunk

        match node:
            case TextChunk():
                return node.original_text
            case Alternative():
                return self._walk(walk.rng.choice(node.items), template, walk)
            case Permutation():
                items = walk.rng.sample(node.items, len(node.items))
                return "".join(self._walk(item, template, walk) for item in items)
            case Sequence():
                return "".join(self._walk(item, template, walk) for item in node.items)
            case RuleReference():
                walk.rules_used.add(node.rule_name)
                return self._walk(self._parse(self._grammar.rules[node.rule_name]), template, walk)
            case ListReference():
                text, value = self._value(node.list_name, template, walk)
                walk.slots[node.slot_name] = value
                return text
        raise TypeError(f"unknown part of a template: {node!r}")

    def _value(self, name: str, template: Template, walk: _Walk) -> tuple[str, Any]:
        """What is said for a list, and the value that it stands for."""
        found: Mapping[str, Any] = self._grammar.lists[name]
        if "values" in found:
            values = found["values"]
            if name == "name" and template.domains:
                values = [value for value in values if value["context"]["domain"] in template.domains]
            chosen = walk.rng.choice(values)
            if isinstance(chosen, str):
                return chosen, chosen
            return self._walk(self._parse(chosen["in"]), template, walk), chosen["out"]
        if "range" in found:
            return self._number(name, found["range"], walk.rng)
        walk.free_text = True
        phrases = self._facility.phrases.get(name, Phrases()).of(template.language)
        if not phrases:
            raise DataError(
                f"'{template.text}' takes free text '{name}', and the facility has none in {template.language}",
                where=f"phrases.{name}.{template.language}",
                hint="list a few phrases there",
            )
        phrase = walk.rng.choice(phrases)
        return phrase, phrase

    def _number(self, name: str, bounds: Mapping[str, Any], rng: random.Random) -> tuple[str, Any]:
        low, high, step = bounds["from"], bounds["to"], bounds.get("step", 1)
        numbers: tuple[int, ...] = tuple(range(low, high + 1, step))
        typical = _TYPICAL.get(name, tuple(range(low, high + 1, 10)))
        number: float = rng.choice(typical if rng.random() < _TYPICAL_SHARE else numbers)
        if bounds.get("fractions") == "halves" and rng.random() < 0.15:
            number += 0.5
        whole = int(number) if number == int(number) else None
        value = number * bounds.get("multiplier", 1)
        in_words = rng.random() < self._number_words
        # hassil 3.12 loses the multiplier of a number in words, so "down by ten" would be recognised as up.
        if in_words and whole is not None and whole <= 100 and "multiplier" not in bounds:
            return _in_words(whole, self._grammar.language), value
        return f"{number:g}", value


def _all_of_where(template: Template, walk: _Walk) -> bool:
    """Whether it says "all fans" and not where: the source means this room's, many people mean the whole house's."""
    this_room = template.language == "en" and "area" in template.slots
    return this_room and "all" in walk.rules_used and "here" not in walk.rules_used


@cache
def _in_words(number: int, language: str) -> str:
    from hassil.numbers import get_rbnf_engine

    return get_rbnf_engine(language).format_number(number).text.replace("-", " ")


def _tidy(text: str, language: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])", "", text) if language == "zh" else text


_ODD_ZH = re.compile(r"的的|楼[楼层]|层[楼层]|[a-z]{3,}|一下一下|播放播放|(灯)的?\1|开的?开关的?关")


def _natural(text: str, language: str) -> bool:
    """Whether the parts that were drawn fit together: no doubled words, numbers that agree with their unit."""
    if not text:
        return False
    if language == "zh":
        return not _ODD_ZH.search(text)
    words = text.split()
    for first, second in pairwise(words):
        if first == second or {first, second} <= {"the", "my", "our"} or {first, second} <= _LIGHT_WORDS:
            return False
        if first in ("1", "one") and second in ("hours", "minutes", "seconds"):
            return False
    return not re.search(r"\b(?!1 |one )\w+ (hour|minute|second)( and|$)", text)
