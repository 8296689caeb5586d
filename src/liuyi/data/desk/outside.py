"""Requests outside the task: other topics, and rooms or devices that the facility does not have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from liuyi.data.desk.answers import hand_off
from liuyi.data.desk.expand import Expander, Sentence
from liuyi.data.desk.facility import Facility, Language
from liuyi.data.desk.recognise import Recogniser
from liuyi.data.desk.templates import Grammar, Template

OutsidePart = Literal["train", "dev", "test"]


@cache
def _source() -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load((files(__package__) / "outside.yaml").read_text(encoding="utf-8")))


def outside_requests(
    part: OutsidePart, grammar: Grammar, facility: Facility, recogniser: Recogniser, seed: int
) -> Iterator[Sentence]:
    """Endless requests that nobody's template reads, in turn of another topic and of something unknown.

    `recogniser` knows every template: what it can read is inside the task after all, and is left out.
    """
    rng = random.Random(f"outside/{seed}/{part}/{grammar.language}")
    topics = _topics(part, grammar.language)
    strangers = _strangers(part, grammar)
    plain = Expander(grammar, facility, 0.0)
    strange = Expander(strangers, facility, 0.1)
    naming = [template for template in strangers.templates if "{area}" in template.text or "{name}" in template.text]
    while True:
        for expander, templates in ((plain, topics), (strange, naming)):
            sentence = expander.draw(rng.choice(templates), rng)
            if sentence is not None and recogniser.read(sentence.text) is None:
                yield replace(sentence, answer=hand_off())


def _topics(part: OutsidePart, language: Language) -> list[Template]:
    return [Template(language, "outside", text, "topic", {}, ()) for text in _source()["topics"][part][language]]


def _strangers(part: OutsidePart, grammar: Grammar) -> Grammar:
    """The grammar with names in it that the facility does not know."""
    unknown = _source()["unknown"][part]
    lists = grammar.lists | {
        name: {"values": [{"in": word, "out": word} for word in unknown[name][grammar.language]]}
        for name in ("area", "name")
    }
    templates = tuple(replace(template, domains=()) for template in grammar.templates)
    return replace(grammar, lists=lists, templates=templates)
