"""Several requests in one sentence: joined ones, and ones that share a verb or a room."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from liuyi.data.desk.answers import answer
from liuyi.data.desk.expand import Sentence
from liuyi.data.desk.facility import Facility, Language

_JOINTS = {
    "en": (" and ", ", and ", ", then ", " and then ", ", and then "),
    "zh": ("，", "，然后", "，再", "，并且", "，接着", "然后"),
}


@dataclass(frozen=True)
class Compound:
    """A request that holds several, with the answer to each in order."""

    text: str
    answers: tuple[str, ...]
    shared: bool
    """Whether the parts share words, as in "turn off the kitchen and bedroom lights"."""

    @property
    def reference(self) -> str:
        return f"[{','.join(self.answers)}]"


def join_requests(sentences: Sequence[Sentence], language: Language, rng: random.Random) -> Compound:
    """Two or three whole requests, one after the other."""
    text = sentences[0].text
    for sentence in sentences[1:]:
        text += rng.choice(_JOINTS[language]) + sentence.text
    return Compound(text, tuple(sentence.answer for sentence in sentences), shared=False)


def share_words(facility: Facility, language: Language, rng: random.Random) -> Compound | None:
    """One verb for two rooms, for two devices, or for two things in one room; None where there are too few of all."""
    act, intent = rng.choice((("on", "HassTurnOn"), ("off", "HassTurnOff")))
    makers = (
        (_two_rooms, len(facility.areas) >= 2),
        (_two_devices, len(_switched(facility)) >= 2),
        (_two_covers, len(facility.areas) >= 1),
    )
    possible = [make for make, enough in makers if enough]
    return rng.choice(possible)(facility, language, rng, act, intent) if possible else None


def _names(facility: Facility, language: Language, rng: random.Random, keys: Sequence[str]) -> list[tuple[str, str]]:
    things = {**facility.areas, **facility.devices}
    return [(key, rng.choice(things[key].of(language))) for key in keys]


def _two_rooms(facility: Facility, language: Language, rng: random.Random, act: str, intent: str) -> Compound:
    (first, one), (second, two) = _names(facility, language, rng, rng.sample(sorted(facility.areas), 2))
    if language == "en":
        shapes = (f"turn {act} the {one} and {two} lights", f"turn {act} the lights in the {one} and the {two}")
        text = rng.choice(shapes)
    else:
        verb = "打开" if act == "on" else "关闭"
        text = rng.choice((f"{verb}{one}和{two}的灯", f"把{one}和{two}的灯{verb}"))
    answers = tuple(answer(intent, {"area": area, "domain": "light"}) for area in (first, second))
    return Compound(text, answers, shared=True)


def _switched(facility: Facility) -> list[str]:
    domains = ("light", "switch", "fan")
    return sorted(k for k, device in facility.devices.items() if device.domain in domains and not device.guarded)


def _two_devices(facility: Facility, language: Language, rng: random.Random, act: str, intent: str) -> Compound:
    (first, one), (second, two) = _names(facility, language, rng, rng.sample(_switched(facility), 2))
    if language == "en":
        text = rng.choice((f"turn {act} the {one} and the {two}", f"switch {act} the {one} and {two}"))
    else:
        verb = "打开" if act == "on" else "关闭"
        text = rng.choice((f"{verb}{one}和{two}", f"把{one}和{two}{verb}"))
    return Compound(text, tuple(answer(intent, {"name": name}) for name in (first, second)), shared=True)


def _two_covers(facility: Facility, language: Language, rng: random.Random, act: str, intent: str) -> Compound:
    kinds = {"blind": ("blinds", "百叶窗"), "curtain": ("curtains", "窗帘"), "window": ("windows", "窗户")}
    first, second = rng.sample(sorted(kinds), 2)
    ((area, room),) = _names(facility, language, rng, [rng.choice(sorted(facility.areas))])
    if language == "en":
        verb = "open" if act == "on" else "close"
        text = f"{verb} the {room} {kinds[first][0]} and {kinds[second][0]}"
    else:
        verb = "打开" if act == "on" else "关闭"
        text = f"{verb}{room}的{kinds[first][1]}和{kinds[second][1]}"
    answers = tuple(answer(intent, {"area": area, "device_class": kind, "domain": "cover"}) for kind in (first, second))
    return Compound(text, answers, shared=True)
