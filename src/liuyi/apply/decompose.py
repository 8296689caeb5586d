"""Taking a request apart: several requests joined by words or commas, and things that share one verb or one room.

    segmentations("turn off the kitchen lights and lock the front door", lexicon)
        → [["turn off the kitchen lights", "lock the front door"], …]
    segmentations("turn off the kitchen and bedroom lights", lexicon)
        → [["turn off the kitchen lights", "turn off the bedroom lights"], …]

These are proposals, the likeliest first. Whoever asks takes one only if each of its parts is understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from liuyi.apply.language import language_of
from liuyi.data.desk.facility import LANGUAGES, Facility, Language, Names

MAX_PARTS = 4

_MAX_JOINTS = 5

_JOINTS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"\s*[,;]\s*(?:and\s+)?(?:then\s+)?|\s+(?:and\s+)?then\s+|\s+and\s+(?:also\s+)?"),
    "zh": re.compile(r"\s*[，；,;]\s*(?:然后再?|接着|并且|而且|同时|再|并|还有)?|然后再?|接着|并且|而且|同时|和"),
}
_COORDINATORS: dict[Language, str] = {
    "en": r"\s*(?:,\s*and\s+|,\s*|\s+and\s+)(?:the\s+|my\s+|our\s+)?",
    "zh": r"\s*(?:、|，|和|与|跟|及|以及|还有)\s*",
}
_FINAL = re.compile(r"[\s.!?。！？，,;；]+$")
_VERB_FIRST: dict[Language, re.Pattern[str]] = {
    "en": re.compile(
        r"^(?:please\s+)?(?:turn (?:on|off|up|down)|switch (?:on|off)|open|close|shut|lock|unlock|activate|deactivate|"
        r"mute|unmute|pause|resume|start|stop|clean|vacuum)\s+(?=the |my |our |\w)"
    ),
    "zh": re.compile(r"^(?:请|麻烦|帮我)?(?:打开|开启|开|关闭|关掉|关了|关上|锁上|解锁|暂停|恢复|继续|启动|停止)"),
}
_BA = re.compile(r"^(?:请|麻烦|帮我)?(?:把|将|让|给)")
_BA_VERB = re.compile(r"(?:都)?(?:打开|开启|关闭|关掉|关了|关上|锁上|解锁|静音|暂停)$")


class Lexicon:
    """Names that may be listed after each other, by kind: rooms with rooms, devices with devices."""

    def __init__(self, facility: Facility, lists: Mapping[str, Mapping[str, Any]]) -> None:
        """`lists` are the word lists of each language, in hassil's form; kinds of covers are taken from them."""
        self._names = {language: _patterns(facility, language, lists.get(language, {})) for language in LANGUAGES}
        self._runs = {
            language: [
                re.compile(f"{p.pattern}(?:{_COORDINATORS[language]}{p.pattern})+", re.IGNORECASE) for p in found
            ]
            for language, found in self._names.items()
        }

    def runs(self, text: str, language: Language) -> list[re.Match[str]]:
        """Where names of one kind are listed."""
        return [run for pattern in self._runs[language] for run in pattern.finditer(text)]

    def spread(self, text: str, language: Language) -> list[str]:
        """One request for each name of the first list in it, everything around the list kept; else `text` alone."""
        for names, runs in zip(self._names[language], self._runs[language], strict=True):
            if run := runs.search(text):
                return [text[: run.start()] + name.group() + text[run.end() :] for name in names.finditer(run.group())]
        return [text]


def segmentations(text: str, lexicon: Lexicon) -> list[list[str]]:
    """Ways to take `text` apart into two to `MAX_PARTS` requests, those with the most cuts first.

    A joint inside a list of names is no place to cut: "the kitchen and bedroom lights" is one verb for two rooms.
    """
    language = language_of(text)
    text = _FINAL.sub("", text.strip())
    lists = [run.span() for run in lexicon.runs(text, language)]
    joints = [
        joint
        for joint in _JOINTS[language].finditer(text)
        if joint.start() > 0 and not any(start <= joint.start() and joint.end() <= end for start, end in lists)
    ][:_MAX_JOINTS]
    found: list[list[str]] = []
    for count in range(len(joints), -1, -1):
        for cuts in combinations(joints, count):
            parts = _cut(text, cuts)
            for spoken in (parts, _carry_verb(parts, language)):
                whole = [request for part in spoken for request in lexicon.spread(part, language)]
                if all(whole) and 2 <= len(whole) <= MAX_PARTS and whole not in found:
                    found.append(whole)
    return found


def _cut(text: str, cuts: Sequence[re.Match[str]]) -> list[str]:
    ends = [cut.start() for cut in cuts] + [len(text)]
    starts = [0] + [cut.end() for cut in cuts]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _carry_verb(parts: list[str], language: Language) -> list[str]:
    """Parts that leave out the verb get it from the part before, or from the last one in Chinese "把…" sentences."""
    opening, ending = _BA.match(parts[0]), _BA_VERB.search(parts[-1])
    if language == "zh" and opening and ending:
        return [
            ("" if _BA.match(part) else opening.group()) + part + ("" if _BA_VERB.search(part) else ending.group())
            for part in parts
        ]
    out = list(parts)
    for place in range(1, len(out)):
        verb = _VERB_FIRST[language].match(out[place - 1])
        if verb and not _VERB_FIRST[language].match(out[place]):
            out[place] = verb.group() + out[place]
    return out


def _patterns(facility: Facility, language: Language, lists: Mapping[str, Any]) -> list[re.Pattern[str]]:
    from hassil.parse_expression import parse_sentence
    from hassil.sample import sample_expression

    covers = [
        text
        for value in lists.get("cover_classes", {}).get("values", ())
        for text in sample_expression(parse_sentence(value["in"]).expression)
    ]
    kinds = [
        *([name for names in group.values() for name in names.of(language)] for group in _groups(facility)),
        covers,
    ]
    return [_alternation(names, language) for names in kinds if names]


def _groups(facility: Facility) -> tuple[Mapping[str, Names], ...]:
    return facility.areas, facility.floors, facility.devices


def _alternation(names: list[str], language: Language) -> re.Pattern[str]:
    choices = "|".join(re.escape(name) for name in sorted(set(names), key=lambda name: (-len(name), name)))
    return re.compile(f"(?:{choices})" if language == "zh" else rf"\b(?:{choices})\b", re.IGNORECASE)
