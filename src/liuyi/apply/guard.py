"""The guard: what may happen at once, what a person must confirm, and what must not be answered by machine.

Locks, the alarm, gates, garage doors, the main valves: an action on one of these is never released without a
confirmation. An answer that is guarded though the request names nothing guarded, or the other way round, has been
misunderstood and goes to a person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from liuyi.apply.language import language_of
from liuyi.core.errors import LiuyiError
from liuyi.data.desk.answers import parse_answer
from liuyi.data.desk.facility import LANGUAGES, Facility

QUERIES = frozenset(
    {
        "HandOff",
        "HassClimateGetTemperature",
        "HassGetCurrentDate",
        "HassGetCurrentTime",
        "HassGetState",
        "HassGetWeather",
        "HassNevermind",
        "HassRespond",
        "HassTimerStatus",
    }
)
"""Intents that change nothing. Whatever is not listed here acts."""

Decision = Literal["free", "confirm", "refuse"]


class NotConfirmed(LiuyiError):
    """A guarded action was to be released without a person's confirmation."""


@dataclass(frozen=True)
class Ruling:
    """What the guard says about one answer to one request, and why."""

    decision: Decision
    reason: str = ""


@dataclass(frozen=True)
class Released:
    """An answer that may be carried out. Only `Guard.release` makes one."""

    answer: str
    confirmed: bool


class Guard:
    """Rules on what a facility guards."""

    def __init__(self, facility: Facility, lists: Mapping[str, Mapping[str, Any]]) -> None:
        """`lists` are the word lists of each language, in hassil's form; kinds of covers are taken from them."""
        self._facility = facility
        self._classes = frozenset(facility.guarded_device_classes)
        self._words = {language: self._guarded_words(language, lists.get(language, {})) for language in LANGUAGES}

    def is_action(self, answer: str) -> bool:
        """Whether carrying the answer out would change something."""
        parsed = parse_answer(answer)
        return parsed is None or parsed[0] not in QUERIES

    def is_guarded(self, answer: str) -> bool:
        """Whether the answer acts on something guarded. What cannot be read is guarded."""
        parsed = parse_answer(answer)
        if parsed is None:
            return True
        intent, slots = parsed
        if intent in QUERIES:
            return False
        name = slots.get("name")
        device = self._facility.devices.get(name) if isinstance(name, str) else None
        if device is not None and (device.guarded or device.domain in ("lock", "alarm_control_panel")):
            return True
        if slots.get("device_class") in self._classes or slots.get("domain") in ("lock", "alarm_control_panel"):
            return True
        later = slots.get("conversation_command")
        return later is not None and self.names_guarded(str(later))

    def names_guarded(self, text: str) -> bool:
        """Whether a text names something guarded, in the language that it is written in."""
        return bool(self._words[language_of(text)].search(text.casefold()))

    def rule(self, text: str, answer: str) -> Ruling:
        """The ruling on an answer to the request `text`."""
        guarded, named = self.is_guarded(answer), self.names_guarded(text)
        if guarded and not named:
            return Ruling("refuse", "the answer acts on something guarded that the request does not name")
        if guarded:
            return Ruling("confirm", "it acts on something guarded")
        if named and self.is_action(answer) and not self._keeps_text(answer):
            return Ruling("refuse", "the request names something guarded, and the answer acts on something else")
        return Ruling("free")

    def release(self, answer: str, *, confirmed: bool) -> Released:
        """Let an answer be carried out.

        Raises NotConfirmed if it is guarded and nobody has confirmed it.
        """
        if self.is_guarded(answer) and not confirmed:
            raise NotConfirmed("a guarded action needs a person's confirmation", hint=f"it is {answer}")
        return Released(answer, confirmed)

    def _keeps_text(self, answer: str) -> bool:
        """Whether the answer only passes words on, as a message or a list does, so that naming a thing is no act."""
        parsed = parse_answer(answer)
        return parsed is not None and bool({"message", "item", "search_query"} & set(parsed[1]))

    def _guarded_words(self, language: Any, lists: Mapping[str, Any]) -> re.Pattern[str]:
        from hassil.parse_expression import parse_sentence
        from hassil.sample import sample_expression

        words = {
            name.casefold()
            for key, device in self._facility.devices.items()
            if key in self._facility.guarded or device.domain in ("lock", "alarm_control_panel")
            for name in device.of(language)
        }
        for value in lists.get("cover_classes", {}).get("values", ()):
            if value["out"] in self._classes:
                words.update(text.casefold() for text in sample_expression(parse_sentence(value["in"]).expression))
        if not words:
            return re.compile(r"(?!)")
        choices = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
        return re.compile(choices if language == "zh" else rf"\b(?:{choices})s?\b")
