"""The sentence templates of `home-assistant-intents`, one by one, with the slots that each of them fixes.

Two things are made plain that the source leaves to the running assistant:

* A request without a place ("turn off the lights") is about the room where it was made. The source takes that room
  from its context; here the answer says so: `"area": "here"`. Chinese templates that name the whole home or all of
  something are not about one room, whatever their block's context says.
* A question about states may ask whether any, whether all, which, or how many. The source keeps that in the name of
  the reply; here it is the slot `ask`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from liuyi.core.digest import canonical_json, sha256_bytes
from liuyi.core.errors import DataError
from liuyi.data.desk.facility import Facility, Language

PACKAGE = "home-assistant-intents"
LICENCE = "CC-BY-4.0"
ATTRIBUTION = "Sentence templates: home-assistant-intents by The Home Assistant Authors, CC BY 4.0; expanded, changed"
HERE = "here"
QUESTIONS = ("any", "all", "which", "how_many")
_DATA_NAME: dict[Language, str] = {"en": "en", "zh": "zh-CN"}


@dataclass(frozen=True)
class Template:
    """One sentence template: what may be said, and the part of the answer that it fixes."""

    language: Language
    intent: str
    text: str
    combination: str
    """Home Assistant's name for the set of slots, such as `area_brightness`."""
    slots: dict[str, Any] = field(hash=False)
    domains: tuple[str, ...]
    """Domains that `{name}` may come from; empty for any."""

    @property
    def cluster(self) -> str:
        """The template's family: what is held out together. Equal texts of one intent are one family."""
        return f"{self.language}.{self.intent}.{sha256_bytes(self.text.encode())[:8]}"

    @property
    def signature(self) -> str:
        """What the template says, whatever its words: intent, set of slots, fixed values, domains."""
        return canonical_json([self.intent, self.combination, self.slots, self.domains])

    def block(self) -> dict[str, Any]:
        """The template as a hassil block of its own."""
        block: dict[str, Any] = {"sentences": [self.text], "metadata": {"cluster": self.cluster}}
        if self.slots:
            block["slots"] = self.slots
        if self.domains:
            block["requires_context"] = {"domain": list(self.domains)}
        return block


@dataclass(frozen=True)
class Grammar:
    """All templates of one language, with the word lists and expansion rules that they use."""

    language: Language
    templates: tuple[Template, ...]
    lists: dict[str, Any]
    rules: dict[str, str]
    skip_words: tuple[str, ...]
    ignore_whitespace: bool

    def hassil(self, templates: Iterable[Template] | None = None) -> dict[str, Any]:
        """The grammar as hassil reads it (`Intents.from_dict`), of some templates or of all, one block each."""
        intents: dict[str, Any] = {}
        for template in self.templates if templates is None else templates:
            intents.setdefault(template.intent, {"data": []})["data"].append(template.block())
        return {
            "language": self.language,
            "settings": {"ignore_whitespace": self.ignore_whitespace},
            "lists": self.lists,
            "expansion_rules": self.rules,
            "skip_words": list(self.skip_words),
            "intents": intents,
        }


def load_grammar(language: Language, facility: Facility) -> Grammar:
    """Read one language's templates and put the facility's names into its lists.

    Only what the facility serves and has is taken: its intents, and no word of vacuums where there is none.
    Raises DataError if the installed package does not hold the language in the form that is known.
    """
    path = files("home_assistant_intents") / "data" / f"{_DATA_NAME[language]}.json"
    where = f"{PACKAGE} {version(PACKAGE)}, data/{_DATA_NAME[language]}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        templates = tuple(
            _template(language, intent, text, block)
            for intent, content in sorted(data["intents"].items())
            if not facility.intents or intent in facility.intents
            for block in content["data"]
            for text in block["sentences"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the sentence templates cannot be read: {error!r}",
            where=where,
            hint=f"install the version of {PACKAGE} that constraints.txt names",
        ) from error
    return Grammar(
        language=language,
        templates=tuple(template for template in templates if _can_be_said(template, facility)),
        lists=data["lists"] | facility.lists(language),
        rules=data["expansion_rules"],
        skip_words=tuple(data.get("skip_words", ())),
        ignore_whitespace=bool(data.get("settings", {}).get("ignore_whitespace", False)),
    )


def _can_be_said(template: Template, facility: Facility) -> bool:
    """Whether the facility has what the template names: a device of its domains, areas, floors, zones."""
    groups = {"{area": facility.areas, "<area>": facility.areas, "{floor": facility.floors, "{zone": facility.zones}
    if not all(group for mark, group in groups.items() if mark in template.text):
        return False
    return not template.domains or not facility.domains().isdisjoint(template.domains)


def _template(language: Language, intent: str, text: str, block: dict[str, Any]) -> Template:
    context = block.get("requires_context", {})
    slots = dict(block.get("slots", {}))
    if "area" in context and not _whole_home(language, text):
        slots["area"] = HERE
    if intent == "HassGetState" and block.get("response") in QUESTIONS:
        slots["ask"] = block["response"]
    return Template(
        language=language,
        intent=intent,
        text=text,
        combination=block["metadata"]["slot_combination"],
        slots=slots,
        domains=tuple(sorted(context.get("domain", ()))),
    )


def _whole_home(language: Language, text: str) -> bool:
    return language == "zh" and ("<home>" in text or "<all>" in text)
