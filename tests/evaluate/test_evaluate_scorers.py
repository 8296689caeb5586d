"""What counts as right."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liuyi.core.errors import DataError, LiuyiError
from liuyi.evaluate import scorers
from liuyi.evaluate.evaluation import Metric
from liuyi.evaluate.scorers import get_scorer, item_score, parse_json, scorer

REFERENCE = '{"intent":"HassTurnOn","slots":{"area":"kitchen","brightness":50}}'
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["HassTurnOn"]}}, "required": ["intent", "slots"]}
json_exact = get_scorer("json_exact")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def scores(output: str, reference: str = REFERENCE) -> dict[str, float]:
    return item_score(json_exact, output, reference, {"schema": SCHEMA})


@pytest.mark.parametrize(
    ("output", "exact", "intent", "slot_f1"),
    [
        (REFERENCE, 1, 1, 1),
        ('{ "slots": {"brightness": 50.0, "area": "kitchen"},\n "intent": "HassTurnOn" }', 1, 1, 1),
        ('{"intent":"HassTurnOn","slots":{"area":"kitchen","brightness":"50"}}', 0, 1, 1 / 2),
        ('{"intent":"HassTurnOff","slots":{"area":"kitchen","brightness":50}}', 0, 0, 1),
        ('{"intent":"HassTurnOn","slots":{"area":"kitchen"}}', 0, 1, 2 / 3),
        ('{"intent":"HassTurnOn"}', 0, 1, 0),
        ('["HassTurnOn"]', 0, 0, 0),
    ],
)
def test_json_answers(output: str, exact: float, intent: float, slot_f1: float) -> None:
    found = scores(output)
    assert (found["exact"], found["intent"], found["slot_f1"]) == pytest.approx((exact, intent, slot_f1))
    assert found["valid_json"] == 1


@pytest.mark.parametrize("output", ["", "on", REFERENCE[:-1], f"{REFERENCE} ok", "NaN", '{"a":1,"a":1}', "[" * 100_000])
def test_what_is_not_json_is_wrong_in_everything(output: str) -> None:
    assert set(scores(output).values()) == {0.0}


@pytest.mark.parametrize("depth", [480, 900, 5000])
def test_an_answer_that_is_nested_too_deeply_is_wrong_and_ends_nothing(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    nested = {"type": "array", "items": {"$ref": "#"}}
    assert set(item_score(json_exact, deep, REFERENCE, {"schema": nested}).values()) == {0.0}
    with pytest.raises(DataError, match=r"failed: RecursionError|not JSON"):
        item_score(json_exact, REFERENCE, "[" * 900 + "]" * 900, {"id": "i"})


def test_schema() -> None:
    assert scores('{"intent":"HassTurnOn","slots":{}}')["valid_schema"] == 1
    assert scores('{"intent":"HassFly","slots":{}}')["valid_schema"] == 0
    assert json_exact(REFERENCE, REFERENCE, {})["valid_schema"] == 1
    with pytest.raises(DataError, match="not a JSON Schema"):
        json_exact(REFERENCE, REFERENCE, {"schema": {"type": "thing"}})


def test_true_is_not_one() -> None:
    assert scores('{"a":true}', '{"a":1}')["exact"] == 0
    assert scores('{"a":1.0}', '{"a":1}')["exact"] == 1
    assert scores('{"a":null}', '{"a":"null"}')["exact"] == 0


@given(values, values)
def test_exact_is_equality_of_values(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    shuffled = json.dumps(one, indent=2)
    assert scores(shuffled, json.dumps(other))["exact"] == same
    assert scores(shuffled, json.dumps(one))["slot_f1"] == 1


def test_a_reference_that_is_not_json_is_named() -> None:
    with pytest.raises(DataError, match="reference is not JSON"):
        json_exact("{}", "{", {"id": "i7"})


def test_text_scorers() -> None:
    assert get_scorer("exact")("  Ｙｅｓ \n", "Yes", {})["exact"] == 1
    assert get_scorer("exact")("yes", "Yes", {})["exact"] == 0
    assert get_scorer("contains")("Well, YES.", "yes", {})["contains"] == 1
    assert get_scorer("contains")("anything", " ", {})["contains"] == 0
    overlap = get_scorer("overlap")
    assert overlap("把灯关掉", "把灯打开", {})["overlap"] == pytest.approx(2 * 1 / 6)
    assert overlap("", "", {})["overlap"] == 1
    assert overlap("a", "b", {})["overlap"] == 0


def test_parse_json_tells_null_from_nothing() -> None:
    assert parse_json("null") == (None, True)
    assert parse_json("nul") == (None, False)


def test_unknown_scorers_are_named() -> None:
    with pytest.raises(DataError, match="json_exact"):
        get_scorer("json_exakt")


def test_a_scorer_that_fails_names_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_scorers", dict(scorers._scorers))

    @scorer("number", close=Metric("within one"), far=Metric("far"))
    def number(output: str, reference: str, item: dict) -> dict[str, float]:
        return {"close": float(abs(float(output) - float(reference)) <= 1)}

    with pytest.raises(DataError, match=r"i7: scorer 'number' failed: ValueError"):
        item_score(get_scorer("number"), "ten", "10", {"id": "i7"})
    with pytest.raises(DataError, match="gave no 'far'"):
        item_score(get_scorer("number"), "10", "10", {"id": "i7"})
    with pytest.raises(LiuyiError, match="two scorers are named"):
        scorer("number", close=Metric("x"))(lambda output, reference, item: {"close": 0.0})
