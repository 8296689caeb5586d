"""Calls are told from text the same however the text is cut, and nothing that a model wrote is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.infer.tools.calls import CallPiece, Message, Text
from liuyi.infer.tools.formats import HERMES, MISTRAL, format_of
from liuyi.infer.tools.hermes import HermesReader
from liuyi.infer.tools.llama import LlamaReader
from liuyi.infer.tools.mistral import MistralReader
from liuyi.infer.tools.plain import PlainReader
from liuyi.infer.tools.reader import ToolReader

NAMES = {"weather", "add"}
READERS = {"hermes": HermesReader, "llama": LlamaReader, "mistral": MistralReader, "plain": PlainReader}


def read(reader: type[ToolReader], *texts: str) -> Message:
    machine, message = reader(NAMES), Message()
    for text in texts:
        message.add(machine.push(text))
    return message.add(machine.finish())


WEATHER = '{"name": "weather", "arguments": {"city": "Paris, {\\"<tool_call>\\"}", "days": [1, {"a": null}]}}'
ARGUMENTS = '{"city": "Paris, {\\"<tool_call>\\"}", "days": [1, {"a": null}]}'
ADD = '{"name": "add", "arguments": {"a": 1}}'
CALLS = [("weather", ARGUMENTS), ("add", '{"a": 1}')]


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", CALLS[:1]),
        ("hermes", f"<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{ADD}\n</tool_call>", "", CALLS),
        ("hermes", f"I look.\n\n<tool_call>\n{WEATHER}\n</tool_call>\n", "I look.", CALLS[:1]),
        ("hermes", f"I look.\n<tool_call>\n{ADD}\n</tool_call>\nDone. ", "I look.\nDone.", CALLS[1:]),
        ("hermes", f"<tool_call>\n{WEATHER}\n<tool_call>\n{ADD}", "", CALLS),
        ("hermes", f"a < b <tool_call {ADD}", f"a < b <tool_call {ADD}", []),
        ("hermes", "  two\nlines \n", "  two\nlines \n", []),
        ("hermes", "<tool_call>\n{nothing}\n</tool_call>", "<tool_call>\n{nothing}\n</tool_call>", []),
        ("hermes", f"<tool_call>\nno {ADD}\n</tool_call>", f"<tool_call>\nno {ADD}\n</tool_call>", []),
        ("hermes", '<tool_call>\n{"name": "add"', '<tool_call>\n{"name": "add"', []),
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": "x', "", [("add", '{"a": "x')]),
        ("hermes", f"<tool_call>{ADD} oops</tool_call>", "oops</tool_call>", CALLS[1:]),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": </tool_call>', "</tool_call>", [("add", '{"a": ')]),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "other"}</tool_call>', "", [("other", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", CALLS[1:]),
        ("hermes", f"<tool_call>\n{ADD}\n</tool_c", "", CALLS[1:]),
        ("hermes", f"<tool_call><tool_call>{ADD}</tool_call>", "<tool_call>", CALLS[1:]),
        ("llama", WEATHER.replace("arguments", "parameters"), "", CALLS[:1]),
        ("llama", f"<|python_tag|>{WEATHER}", "", CALLS[:1]),
        ("llama", f"{WEATHER}; {ADD}", "", CALLS),
        ("llama", f"Wait.\n<|python_tag|>{WEATHER}\n{ADD}", "Wait.", CALLS),
        ("llama", f"Look: {ADD}", f"Look: {ADD}", []),
        ("llama", '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
        ("llama", '<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
        ("llama", '{"a": [1, {"b": 2}]}', '{"a": [1, {"b": 2}]}', []),
        ("mistral", f"[TOOL_CALLS] [{WEATHER}, {ADD}]", "", CALLS),
        ("mistral", f"[TOOL_CALLS][{WEATHER}]", "", CALLS[:1]),
        ("mistral", f'So:[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]add{{"a": 1}}', "So:", CALLS),
        ("mistral", f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{ARGUMENTS}", "", CALLS[:1]),
        ("mistral", "[TOOL_CALLS] not [so]", "[TOOL_CALLS] not [so]", []),
        ("mistral", "[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]", []),
        ("mistral", "a [link][TOOL] b", "a [link][TOOL] b", []),
        ("plain", f"{WEATHER}\n{ADD}\n", "", CALLS),
        ("plain", f"[{WEATHER}, {ADD}]", "", CALLS),
        (
            "plain",
            '{"type": "function", "id": 7, "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}',
            "",
            CALLS[1:],
        ),
        ("plain", f"{ADD}\nThat is it.", "That is it.", CALLS[1:]),
        ("plain", "Nothing to call.", "Nothing to call.", []),
        ("plain", '["add", 1]', '["add", 1]', []),
        ("plain", '{"name": "add", "arguments": null}', "", [("add", "{}")]),
        ("plain", '{"name": "\\ud800"}', '{"name": "\\ud800"}', []),
    ],
)
def test_what_models_write(form: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text), [text[at : at + 3] for at in range(0, len(text), 3)]):
        message = read(READERS[form], *pieces)
        assert (message.content, message.calls) == (content, calls)


fragments = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "add", "weather"),
        *("{", "}", "[", "]", '"', "\\", ",", ":", ";", " ", "\n", "<", "text", "厨", "1", "null"),
        *('{"name": "', '"name": "add"', ', "arguments": {', '"parameters"', '{"function": ', WEATHER, ADD),
    ]
)
answers = st.lists(fragments | st.text(max_size=3), max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(sorted(READERS)), text=answers, data=st.data())
def test_any_cutting_gives_the_same_message(form: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(READERS[form], *pieces) == read(READERS[form], text)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(sorted(READERS)), text=answers)
def test_text_without_calls_is_whole(form: str, text: str) -> None:
    message = read(READERS[form], text)
    if not message.calls:
        assert message.content == text
    for name, arguments in message.calls:
        assert name in text
        assert arguments == "{}" or arguments[0] == "{" or json.dumps(arguments)[1:-1] in text or arguments in text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["</tool_call>", "}", '"', "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(max_size=4), values)), min_size=1),
    before=st.sampled_from(["", "I call: ", "x\n"]),
    ensure_ascii=st.booleans(),
)
def test_calls_written_in_each_format_are_read_back(
    calls: list[tuple[str, dict[str, object]]], before: str, ensure_ascii: bool
) -> None:
    def said(key: str) -> list[str]:
        return [json.dumps({"name": name, key: value}, ensure_ascii=ensure_ascii) for name, value in calls]

    texts = {
        "hermes": before + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in said("arguments")),
        "llama": before and f"{before}<|python_tag|>" + "; ".join(said("parameters")),
        "mistral": f"{before}[TOOL_CALLS] [{', '.join(said('arguments'))}]",
        "plain": "\n".join(said("arguments")),
    }
    for form, text in texts.items():
        if text:
            message = read(READERS[form], *text)
            assert [(name, json.loads(arguments)) for name, arguments in message.calls] == calls
            assert message.content == ("" if form == "plain" else before.rstrip())


@pytest.mark.parametrize("form", ["hermes", "plain"])
def test_calls_are_told_as_they_come(form: str) -> None:
    text = f"<tool_call>\n{WEATHER}\n</tool_call>" if form == "hermes" else WEATHER
    reader = READERS[form](NAMES)
    pieces = [reader.push(character) for character in text]
    begin = text.index('{"city')
    assert not any(pieces[:begin])
    assert pieces[begin] == [CallPiece(0, "weather", "{")]
    assert [pieces[begin + at] for at in range(1, len(ARGUMENTS))] == [[CallPiece(0, None, c)] for c in ARGUMENTS[1:]]
    assert not any(pieces[begin + len(ARGUMENTS) :])
    assert reader.finish() == []


def test_text_is_told_as_it_comes() -> None:
    reader = HermesReader(NAMES)
    assert reader.push("Let me ") == [Text("Let me")]
    assert reader.push("see <to") == [Text(" see")]
    assert reader.push("day") == [Text(" <today")]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("<tool_call><function=f>", "plain"),
        ('<|python_tag|> {"name": n, "parameters": p}', "llama"),
        ("[TOOL_CALLS][", "mistral"),
        ("[TOOL_CALLS]name[ARGS]", "mistral-args"),
        ("<|im_start|>", "plain"),
        ("", "plain"),
    ],
)
def test_the_format_is_that_of_the_template(template: str, name: str) -> None:
    assert format_of(template).name == name


def test_a_space_after_the_tag_is_the_templates() -> None:
    assert format_of("[TOOL_CALLS] [").shape.before == " ["
    assert format_of("[TOOL_CALLS][").shape.before == "["


def test_ids_fit_the_templates() -> None:
    assert HERMES.fitting_id("anything") == "anything"
    assert MISTRAL.fitting_id("a1B2c3D4e") == "a1B2c3D4e"
    one, two = MISTRAL.fitting_id("call_1"), MISTRAL.fitting_id("call_2")
    assert one != two
    assert all(len(id) == 9 and id.isalnum() for id in (one, two, MISTRAL.new_id()))
    assert one == MISTRAL.fitting_id("call_1")
