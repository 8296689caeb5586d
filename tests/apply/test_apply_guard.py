"""The guard is never bypassed, and tells misunderstanding from guarded wishes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.apply.app import Knowledge
from liuyi.apply.cascade import Cascade
from liuyi.apply.guard import Guard, NotConfirmed
from liuyi.data.desk.answers import answer

ACTIONS = ("HassTurnOn", "HassTurnOff", "HassSetPosition", "HassUnknownAction")


@pytest.fixture(scope="module")
def guard(knowledge: Knowledge) -> Guard:
    return knowledge.guard


@pytest.mark.parametrize(
    ("text", "said", "decision"),
    [
        ("unlock the front door", answer("HassTurnOff", {"name": "front_door"}), "confirm"),
        ("turn off the alarm", answer("HassTurnOff", {"name": "alarm"}), "confirm"),
        ("open the garage doors", answer("HassTurnOn", {"device_class": "garage", "domain": "cover"}), "confirm"),
        ("打开卷帘门", answer("HassTurnOn", {"name": "roller_door"}), "confirm"),
        ("is the front door locked", answer("HassGetState", {"name": "front_door", "state": "locked"}), "free"),
        ("turn on the kitchen lights", answer("HassTurnOn", {"area": "kitchen", "domain": "light"}), "free"),
        ("broadcast the front door is open", answer("HassBroadcast", {"message": "the front door is open"}), "free"),
        ("turn on the printer", answer("HassTurnOn", {"name": "alarm"}), "refuse"),
        ("unlock the front door", answer("HassTurnOff", {"name": "printer"}), "refuse"),
        ("锁上后门", answer("HassTurnOff", {"name": "tv"}), "refuse"),
        (
            "unlock the safe in 5 minutes",
            answer("HassStartTimer", {"conversation_command": "unlock the safe", "minutes": 5}),
            "confirm",
        ),
    ],
)
def test_rulings(guard: Guard, text: str, said: str, decision: str) -> None:
    assert guard.rule(text, said).decision == decision


def test_what_cannot_be_read_is_guarded(guard: Guard) -> None:
    assert guard.is_guarded("not json")
    with pytest.raises(NotConfirmed):
        guard.release("not json", confirmed=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_guarded_action_is_released_unconfirmed(data: st.DataObject, guard: Guard, knowledge: Knowledge) -> None:
    facility = knowledge.facility
    slots: dict[str, object] = {}
    if data.draw(st.booleans()):
        slots["name"] = data.draw(st.sampled_from(sorted(facility.devices)))
    if data.draw(st.booleans()):
        slots["area"] = data.draw(st.sampled_from(sorted(facility.areas)))
    if data.draw(st.booleans()):
        slots["device_class"] = data.draw(st.sampled_from(["garage", "gate", "door", "blind", "window"]))
    said = answer(data.draw(st.sampled_from(ACTIONS)), slots)
    touches = slots.get("name") in facility.guarded or slots.get("device_class") in facility.guarded_device_classes
    assert guard.is_guarded(said) == touches
    if touches:
        with pytest.raises(NotConfirmed):
            guard.release(said, confirmed=False)
        assert guard.release(said, confirmed=True).confirmed
        for text in ("do it", "unlock the front door and open the garage doors"):
            assert guard.rule(text, said).decision != "free"
    else:
        assert guard.release(said, confirmed=False).answer == said


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_cascade_never_answers_guarded_without_asking(
    data: st.DataObject, knowledge: Knowledge, make_cascade: Callable[..., Cascade]
) -> None:
    names = [name for device in knowledge.facility.devices.values() for name in device.en]
    verbs = st.sampled_from(["unlock the", "open the", "turn off the", "please vacuum the", "kindly use the"])
    text = f"{data.draw(verbs)} {data.draw(st.sampled_from(names))}"
    device = data.draw(st.sampled_from(sorted(knowledge.facility.devices)))
    said = answer(data.draw(st.sampled_from(ACTIONS)), {"name": device})
    cascade = make_cascade({text: (said, data.draw(st.floats(0, 1)))})
    (outcome,) = cascade.respond([text])
    for given_answer in outcome.answers:
        assert given_answer.confirmation_required == cascade.guard.is_guarded(given_answer.text)
        if given_answer.confirmation_required and given_answer.rung == "model":
            assert given_answer.confidence >= cascade.allowed.guarded_threshold
        assert json.loads(given_answer.text)["intent"]
