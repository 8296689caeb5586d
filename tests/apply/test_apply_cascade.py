"""Rungs in turn: each answers only within its risk."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from liuyi.apply.app import Knowledge
from liuyi.apply.cascade import Cascade
from liuyi.apply.language import language_of, tidy
from liuyi.apply.model_rung import Memory, ModelAnswer, ModelRung
from liuyi.apply.rules import Abstained, RuleAnswer, RuleBook
from liuyi.core.errors import ArtifactError
from liuyi.data.desk.answers import answer
from liuyi.infer.engine import Engine
from liuyi.model.tokenizer import train_bpe
from small_models import small_model

Make = Callable[..., Cascade]
VACUUM = answer("HassVacuumStart", {"name": "robot_vacuum"})


def test_rules_answer_what_they_know(make_cascade: Make) -> None:
    cascade = make_cascade()
    (outcome,) = cascade.respond(["Turn on the kitchen lights, please."])
    assert outcome.text == answer("HassTurnOn", {"area": "kitchen", "domain": "light"})
    assert outcome.answers[0].rung == "rules"
    assert outcome.answers[0].confidence == pytest.approx(0.99)
    assert cascade.model.asked == []  # type: ignore[attr-defined]
    assert outcome.prompt_tokens == 0


def test_the_model_answers_what_rules_do_not_know(make_cascade: Make) -> None:
    cascade = make_cascade({"send the robovac round": (VACUUM, 0.8)})
    (outcome,) = cascade.respond(["send the robovac round"])
    assert outcome.text == VACUUM
    assert outcome.answers[0].rung == "model"
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (7, 1)


def test_a_person_gets_a_request_that_leaves_the_model_no_room(make_cascade: Make) -> None:
    tokenizer = train_bpe(["send the robovac round"], 300)
    engine = Engine(small_model(tokenizer.vocab_size), tokenizer, max_tokens=64)
    rung = ModelRung(engine, schema=None, max_tokens=3)
    short, long = "send the robovac round", "send the robovac " * 40
    assert rung.answer([long, short]) == [ModelAnswer("", (), 0, False), *rung.answer([short])]
    cascade = make_cascade()
    cascade.model = rung
    (outcome,) = cascade.respond([long])
    assert outcome.hand_off


def test_a_person_gets_what_nobody_is_sure_of(make_cascade: Make) -> None:
    cascade = make_cascade({"send the robovac round": (VACUUM, 0.6), "broken": ('{"intent":"Hass', 0.99)})
    unsure, outside, broken = cascade.respond(["send the robovac round", "sing me a song", "broken"])
    assert [outcome.hand_off for outcome in (unsure, outside, broken)] == [True] * 3
    assert unsure.reason == "not sure enough"
    assert outside.reason == "outside the task"
    assert broken.reason == "the model's answer is not whole"


def test_guarded_answers_need_more_confidence_and_a_confirmation(make_cascade: Make) -> None:
    said = answer("HassTurnOff", {"name": "safe"})
    text = "kindly get the safe unlocked"
    (unsure,) = make_cascade({text: (said, 0.8)}).respond([text])
    assert unsure.hand_off
    (sure,) = make_cascade({text: (said, 0.95)}).respond([text])
    assert sure.answers[0].confirmation_required


def test_a_guarded_threshold_below_the_plain_one_is_raised_to_it(make_cascade: Make) -> None:
    cascade = make_cascade(model_threshold=0.9, guarded_threshold=0.5)
    assert not cascade.allowed.model(0.7, guarded=True)


def test_rules_over_their_risk_are_left_to_the_model(make_cascade: Make) -> None:
    text = "broadcast dinner is ready"
    said = answer("HassBroadcast", {"message": "dinner is ready"})
    cascade = make_cascade({text: (said, 0.99)}, free_text_bound=0.2)
    (outcome,) = cascade.respond([text])
    assert outcome.answers[0].rung == "model"
    assert make_cascade(rules_bound=0.2).respond(["turn on the kitchen lights"])[0].hand_off


def test_compounds_are_taken_apart_by_both_rungs(make_cascade: Make) -> None:
    cascade = make_cascade({"send the robovac round": (VACUUM, 0.9)})
    (outcome,) = cascade.respond(["turn off the kitchen and bedroom lights, then send the robovac round"])
    assert [json.loads(each.text)["slots"] for each in outcome.answers] == [
        {"area": "kitchen", "domain": "light"},
        {"area": "bedroom", "domain": "light"},
        {"name": "robot_vacuum"},
    ]
    assert [each.rung for each in outcome.answers] == ["rules", "rules", "model"]
    assert json.loads(outcome.text)[2] == json.loads(VACUUM)


def test_one_part_that_nobody_understands_hands_off_the_whole(make_cascade: Make) -> None:
    (outcome,) = make_cascade().respond(["turn off the kitchen lights and sing me a song"])
    assert outcome.hand_off


def test_a_whole_that_is_surer_than_its_parts_stays_whole(make_cascade: Make) -> None:
    text = "send the robovac and mop robot round"
    both = answer("HassVacuumStart", {"name": "mop_robot"})
    cascade = make_cascade(
        {
            text: (VACUUM, 0.99),
            "send the robovac round": (VACUUM, 0.8),
            "send the mop robot round": (both, 0.8),
        }
    )
    assert cascade.respond([text])[0].text == VACUUM
    cascade.model.known[text] = (VACUUM, 0.75)  # type: ignore[attr-defined]
    assert len(cascade.respond([text])[0].answers) == 2


def test_outcomes_do_not_depend_on_company(make_cascade: Make) -> None:
    texts = [
        "turn on the kitchen lights",
        "send the robovac round",
        "打开厨房和卧室的灯",
        "sing",
        "turn on the kitchen lights",
    ]
    known = {"send the robovac round": (VACUUM, 0.9)}
    together = make_cascade(known).respond(texts)
    assert together == [make_cascade(known).respond([text])[0] for text in texts]


def test_an_empty_request_is_handed_off(make_cascade: Make) -> None:
    assert make_cascade().respond(["   "])[0].hand_off


def test_rules_say_why_they_abstain(knowledge: Knowledge) -> None:
    assert knowledge.rules.read("sing me a song") == Abstained("no template fits")
    assert knowledge.rules.read("停止计时器") == Abstained("templates disagree")
    assert RuleBook({"languages": {}}).read("hello") == Abstained("language has no templates")
    reading = knowledge.rules.read("add milk to my shopping list")
    assert isinstance(reading, RuleAnswer)
    assert reading.free_text


def test_rules_that_cannot_be_read_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rules") / "rules.json"
    with pytest.raises(ArtifactError, match="cannot be read"):
        RuleBook.load(path)
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="languages"):
        RuleBook.load(path)


def test_requests_are_tidied() -> None:
    assert tidy("  调到５０％ \n 吧 ") == "调到50% 吧"
    assert language_of("turn on 厨房 lights") == "zh"
    assert language_of("turn on") == "en"


def test_memory_asks_each_request_once(make_cascade: Make) -> None:
    parrot = make_cascade({"a": (VACUUM, 0.8)}).model
    memory = Memory(parrot)
    assert memory.answer(["a", "b", "a"]) == parrot.answer(["a", "b", "a"])
    parrot.asked.clear()  # type: ignore[attr-defined]
    assert [said.text for said in memory.answer(["b", "c", "a"])][2] == VACUUM
    assert parrot.asked == ["c"]  # type: ignore[attr-defined]
