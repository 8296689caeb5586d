"""Requests joined and taken apart again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.apply.app import Knowledge
from liuyi.apply.decompose import MAX_PARTS, Lexicon, segmentations
from liuyi.apply.rules import RuleAnswer, RuleBook
from liuyi.data.desk.compound import share_words
from liuyi.data.desk.facility import LANGUAGES


@pytest.fixture(scope="module")
def lexicon(knowledge: Knowledge) -> Lexicon:
    return knowledge.lexicon


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("turn off the tv and lock the front door", ["turn off the tv", "lock the front door"]),
        ("turn off the kitchen and bedroom lights", ["turn off the kitchen lights", "turn off the bedroom lights"]),
        ("turn on lights in the attic and the gym", ["turn on lights in the attic", "turn on lights in the gym"]),
        ("close the attic blinds and curtains", ["close the attic blinds", "close the attic curtains"]),
        ("turn off the gym lights and the attic fan", ["turn off the gym lights", "turn off the attic fan"]),
        ("timer for 1 hour and 20 minutes and mute the tv.", ["timer for 1 hour and 20 minutes", "mute the tv"]),
        ("打开厨房的灯，然后锁上前门", ["打开厨房的灯", "锁上前门"]),
        ("打开厨房和卧室的灯", ["打开厨房的灯", "打开卧室的灯"]),
        ("把厨房的灯和卧室的风扇关掉", ["把厨房的灯关掉", "把卧室的风扇关掉"]),
        ("关闭打印机、加湿器和咖啡机", ["关闭打印机", "关闭加湿器", "关闭咖啡机"]),
    ],
)
def test_the_right_way_is_among_the_proposals(text: str, parts: list[str], lexicon: Lexicon) -> None:
    assert parts in segmentations(text, lexicon)


def test_a_single_request_is_left_alone(lexicon: Lexicon) -> None:
    assert segmentations("turn off the kitchen lights", lexicon) == []
    assert segmentations("打开厨房的灯", lexicon) == []
    assert segmentations("", lexicon) == []


def test_no_cut_inside_a_list(lexicon: Lexicon) -> None:
    ways = segmentations("turn off the kitchen and bedroom lights", lexicon)
    assert all("turn off the kitchen" not in parts for parts in ways)


SIMPLE = {
    "en": ["turn on the kitchen lights", "lock the front door", "mute the tv", "open the skylight", "pause the radio"],
    "zh": ["打开厨房的灯", "锁上前门", "暂停收音机", "打开天窗", "关闭打印机"],
}
JOINTS = {"en": [" and ", ", ", ", then ", " and then ", "; "], "zh": ["，", "，然后", "，并且", "然后", "；"]}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_joined_can_be_taken_apart(data: st.DataObject, lexicon: Lexicon) -> None:
    language = data.draw(st.sampled_from(LANGUAGES))
    parts = data.draw(st.lists(st.sampled_from(SIMPLE[language]), min_size=2, max_size=MAX_PARTS, unique=True))
    text = parts[0]
    for part in parts[1:]:
        text += data.draw(st.sampled_from(JOINTS[language])) + part
    assert segmentations(text, lexicon)[0] == parts


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="abc 的灯，,;和 and then kitchen 厨房", max_size=60))
def test_any_text_gives_few_nonempty_parts(text: str, lexicon: Lexicon) -> None:
    for parts in segmentations(text, lexicon):
        assert 2 <= len(parts) <= MAX_PARTS
        assert all(part.strip() for part in parts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_shared_words_come_apart_into_requests_that_rules_read(
    language: str, knowledge: Knowledge, lexicon: Lexicon
) -> None:
    rng = random.Random(3)
    rules: RuleBook = knowledge.rules
    for _ in range(25):
        made = share_words(knowledge.facility, language, rng)  # type: ignore[arg-type]
        readings = [[rules.read(part) for part in parts] for parts in segmentations(made.text, lexicon)]
        answers = [
            tuple(reading.answer for reading in found)
            for found in readings
            if all(isinstance(reading, RuleAnswer) for reading in found)
        ]
        assert made.answers in answers, made.text
