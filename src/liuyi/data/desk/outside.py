"""Requests outside the task: other topics, intents that this desk does not serve, unknown rooms and devices."""

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
from liuyi.data.desk.templates import Grammar, Template, load_grammar

OutsidePart = Literal["train", "dev", "test"]
_PARTS: tuple[OutsidePart, ...] = ("train", "dev", "test")


@cache
def _source() -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load((files(__package__) / "outside.yaml").read_text(encoding="utf-8")))


def outside_requests(
    part: OutsidePart, grammar: Grammar, facility: Facility, recogniser: Recogniser, seed: int
) -> Iterator[Sentence]:
    """Endless requests that nobody's template reads, in turn of another topic, an intent not served, something unknown.

    `recogniser` knows every template: what it can read is inside the task after all, and is left out.
    """
    rng = random.Random(f"outside/{seed}/{part}/{grammar.language}")
    strangers = _strangers(part, grammar)
    naming = [template for template in strangers.templates if "{area}" in template.text or "{name}" in template.text]
    everything = load_grammar(grammar.language, facility.model_copy(update={"intents": ()}))
    sources = [
        (Expander(grammar, facility, 0.0), _topics(part, grammar.language)),
        (Expander(everything, facility, 0.0), _unserved(part, everything, grammar)),
        (Expander(strangers, facility, 0.0), naming),
    ]
    sources = [(expander, templates) for expander, templates in sources if templates]
    while True:
        for expander, templates in sources:
            sentence = expander.draw(rng.choice(templates), rng)
            if sentence is not None and recogniser.read(sentence.text) is None:
                yield replace(sentence, answer=hand_off())


def _topics(part: OutsidePart, language: Language) -> list[Template]:
    return [Template(language, "outside", text, "topic", {}, ()) for text in _source()["topics"][part][language]]


def _unserved(part: OutsidePart, everything: Grammar, grammar: Grammar) -> list[Template]:
    """Templates of intents that the desk does not serve, a third of them for each part; none that take free text."""
    served = {template.intent for template in grammar.templates}
    open_lists = {name for name, found in everything.lists.items() if found.get("wildcard")}
    return [
        template
        for template in everything.templates
        if template.intent not in served
        and int(template.cluster[-8:], 16) % len(_PARTS) == _PARTS.index(part)
        and not any(f"{{{name}" in template.text for name in open_lists)
    ]


def _strangers(part: OutsidePart, grammar: Grammar) -> Grammar:
    """The grammar with names in it that the facility does not know."""
    unknown = _source()["unknown"][part]
    lists = grammar.lists | {
        name: {"values": [{"in": word, "out": word} for word in unknown[name][grammar.language]]}
        for name in ("area", "name")
    }
    templates = tuple(replace(template, domains=()) for template in grammar.templates)
    return replace(grammar, lists=lists, templates=templates)
