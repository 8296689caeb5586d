"""Conversations and preferences in every format, and every kind of wrong row."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import Bench, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.corpus import REJECTED
from liuyi.data.instructions.formats import to_chat, to_preference
from liuyi.data.instructions.messages import WrongRow
from liuyi.data.instructions.tables import held_out

ASK, ANSWER = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind."}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(name: str = "weather", id: str | None = "c1", arguments: Any = '{"city": "Graz"}') -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | ({"id": id} if id else {})


def calling(*calls: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


CALLED = [ASK, calling(call()), {"role": "tool", "tool_call_id": "c1", "content": "12 °C"}, ANSWER]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": [ASK, ANSWER]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}, ANSWER]}, "messages"),
        ({"messages": [ASK, ANSWER | {"tool_calls": None}], "tools": None}, "messages"),
        ({"messages": [ASK, ANSWER], "label": True}, "messages"),
        ({"prompt": "Hello?", "completion": "Hello."}, "prompt"),
        ({"prompt": [ASK], "completion": [ANSWER]}, "prompt"),
        ({"instruction": "Hello?", "input": "", "output": "Hello."}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]}, "sharegpt"),
        ({"conversations": [ASK, ANSWER]}, "sharegpt"),
    ],
)
def test_formats(row: dict[str, Any], format: str) -> None:
    chat = to_chat(row)
    assert (chat.messages, chat.format, chat.tools) == ([ASK, ANSWER], format, [])


def test_system_input_and_history() -> None:
    row = {"system": "Be kind.", "prompt": "Hello?", "completion": "Hello."}
    assert to_chat(row).messages == [SYSTEM, ASK, ANSWER]
    row = {"instruction": "Add", "input": "1 2", "output": "3", "history": [["Hello?", "Hello."]], "system": "Be kind."}
    added = [{"role": "user", "content": "Add\n1 2"}, {"role": "assistant", "content": "3"}]
    assert to_chat(row).messages == [SYSTEM, ASK, ANSWER, *added]
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "user", "value": "Hello?"},
        {"from": "assistant", "value": "Hello."},
    ]
    assert to_chat({"conversations": turns}).messages == [SYSTEM, ASK, ANSWER]
    assert to_chat({"messages": [SYSTEM | {"role": "developer"}, ASK, ANSWER]}).messages == [SYSTEM, ASK, ANSWER]


def test_tool_calls_of_every_kind_come_out_the_same() -> None:
    """Arguments are an object, as chat templates take them; ids stay where they were given."""
    function = {"name": "weather", "arguments": {"city": "Graz"}}
    openai = to_chat({"messages": CALLED, "tools": [WEATHER]})
    assert openai.tools == [WEATHER]
    assert openai.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert openai.messages[2] == {"role": "tool", "content": "12 °C", "tool_call_id": "c1"}
    older = [
        ASK,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Graz"}'}},
        {"role": "function", "name": "weather", "content": "12 °C"},
        ANSWER,
    ]
    sharegpt = [
        {"from": "human", "value": "Hello?"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "12 °C"},
        {"from": "gpt", "value": "Hello."},
    ]
    rows: list[dict[str, Any]] = [
        {"messages": older, "tools": json.dumps([WEATHER["function"]])},
        {"conversations": sharegpt, "tools": [WEATHER["function"]]},
    ]
    for row in rows:
        chat = to_chat(row)
        assert chat.tools == [WEATHER]
        assert chat.messages[1]["tool_calls"] == [{"type": "function", "function": function}]
        assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert to_chat({"messages": [ASK, calling(call())]}).messages[-1]["tool_calls"]
    two = [
        ASK,
        calling(call(id="a"), call(id="b")),
        *({"role": "tool", "tool_call_id": id, "content": id} for id in "ba"),
    ]
    assert len(to_chat({"messages": [*two, ANSWER]}).messages) == 5


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "not empty"),
        ({"messages": "Hello"}, "must be a list"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1 must be text, not a number"),
        ({"messages": [{"role": "user", "content": None}]}, "not null"),
        ({"messages": ["Hello"]}, "message 1 must be an object"),
        ({"messages": [ASK, {"role": "user", "content": [{"type": "image_url"}]}]}, "must be text, not a list"),
        ({"messages": [ASK]}, "no answer to learn"),
        ({"messages": [ANSWER]}, "no message of the user"),
        ({"messages": [ASK, SYSTEM, ANSWER]}, "after the first place"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "the answer is empty"),
        ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "message 1, the user's, is empty"),
        ({"messages": [ASK, ANSWER, ANSWER]}, "before the answer is the assistant's"),
        ({"messages": [ASK | {"tool_calls": [call()]}, ANSWER]}, "only the assistant calls"),
        ({"messages": [ASK, calling({"function": {}})]}, "must be an object with a name"),
        ({"messages": [ASK, calling(call(arguments="{city"))]}, "arguments of tool call 1 of message 2 must be JSON"),
        ({"messages": [ASK, calling(call(arguments="[1]"))]}, "must be an object, not a list"),
        ({"messages": [ASK, calling(call("whether"))], "tools": [WEATHER]}, "did you mean 'weather'"),
        ({"messages": [ASK, calling(call()), ASK, ANSWER]}, "'weather' that no tool has answered"),
        ({"messages": [ASK, {"role": "tool", "content": "x"}, ANSWER]}, "no call stands before it"),
        ({"messages": [*CALLED[:2], CALLED[2] | {"tool_call_id": "c2"}, ANSWER]}, "answers the call 'c2'"),
        ({"messages": [ASK, ANSWER], "tools": "[{"}, "'tools' must be JSON"),
        ({"messages": [ASK, ANSWER], "tools": [{"type": "function"}]}, "tool 1 must be an object with a name"),
        ({"messages": [ASK, ANSWER], "label": False}, "labelled as bad"),
        ({"conversations": [{"from": "humen", "value": "x"}]}, "did you mean 'human'"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 1 must be text"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "data.preferences_file"),
        ({"prompt": "x", "completion": ["a"]}, "'completion' must be text, not a list"),
        ({"instruction": "x", "output": 1}, "'output' must be text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "pair of texts"),
        ({"instruction": "x", "output": "y", "history": 5}, "'history' must be a list, not a number"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "turn 1 is from"),
        ({"messages": [ASK, calling(call(arguments={"x": float("nan")}))]}, "tool call 1 of message 2 must be JSON"),
        ({"messages": [ASK, calling(call(arguments={"at": date(2020, 1, 1)}))]}, "tool call 1 of message 2 must be"),
        ({"messages": [ASK, ANSWER], "tools": [{"name": "f", "x": float("inf")}]}, "tool 1 must be JSON"),
        ({"question": "x", "answer": "y"}, "unknown format with the fields answer, question"),
    ],
)
def test_wrong_conversations(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(WrongRow, match=reason):
        to_chat(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello?", "chosen": "Hello.", "rejected": "No."},
        {"question": "Hello?", "chosen": "Hello.", "rejected": "No.", "system": ""},
        {"prompt": [ASK], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]},
        {"prompt": "Hello?", "chosen": [ASK, ANSWER], "rejected": [ASK, {"role": "assistant", "content": "No."}]},
        {"chosen": [ASK, ANSWER], "rejected": [ASK, {"role": "assistant", "content": "No."}]},
        {"instruction": "Hello?", "chosen": "Hello.", "rejected": "No."},
        {
            "conversations": [{"from": "human", "value": "Hello?"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
)
def test_preferences(row: dict[str, Any]) -> None:
    found = to_preference(row)
    assert (found.prompt, found.chosen, found.rejected) == ([ASK], "Hello.", "No.")
    assert found.format.endswith("with chosen and rejected")


@pytest.mark.parametrize("label", [True, False])
def test_labelled_answers(label: bool) -> None:
    for row in (
        {"messages": [ASK, ANSWER], "label": label},
        {"prompt": "Hello?", "completion": "Hello.", "label": str(label).lower()},
        {"instruction": "Hello?", "output": "Hello.", "kto_tag": label},
    ):
        found = to_preference(row)
        assert found.prompt == [ASK]
        assert (found.chosen, found.rejected) == (("Hello.", None) if label else (None, "Hello."))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "a"}, "'rejected' is missing"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "x", "chosen": " ", "rejected": "a"}, "the chosen answer is empty"),
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "the rejected answer is empty"),
        ({"prompt": "x", "chosen": ANSWER, "rejected": ASK}, "must be the assistant's, not the user's"),
        ({"prompt": "x", "chosen": calling(call()), "rejected": ANSWER}, "calls tools"),
        ({"prompt": "x", "chosen": 5, "rejected": "b"}, "must be a list"),
        ({"prompt": "y", "chosen": [ASK, ANSWER], "rejected": [ASK, ANSWER]}, "not what chosen and rejected answer"),
        ({"chosen": [ASK, ANSWER], "rejected": [SYSTEM, ASK, ANSWER]}, "different conversations"),
        ({"prompt": [ASK, ANSWER], "chosen": "a", "rejected": "b"}, "before the answer is the assistant's"),
        ({"prompt": "x", "completion": "y", "label": 3}, "nor a 'label'"),
        ({"messages": [ASK, ANSWER]}, "nor a 'label'"),
    ],
)
def test_wrong_preferences(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(WrongRow, match=reason):
        to_preference(row)


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows),
        encoding="utf-8",
    )
    return path


def read(bench: Bench, output: str, file: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(bench.made[output].file(file)).to_pylist()
    return rows


def test_a_file_with_wrong_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "a", "completion": "A"},
        "",
        "{not json",
        {"messages": [ASK]},
        {"prompt": "b", "completion": "  "},
        '"text"',
        {"instruction": "a", "output": "A"},
        {"prompt": "打开灯", "completion": "好"},
        {"messages": CALLED, "tools": [WEATHER]},
    )
    bench = run_step("data.chats_file", tmp_path / "out", path=path, license="CC0-1.0", heldout_fraction=0)
    chats = read(bench, "train", "chats.parquet")
    assert [json.loads(row["messages"])[-1]["content"] for row in chats] == ["A", "好", "Hello."]
    assert [bool(row["tools"]) for row in chats] == [False, False, True]
    assert {(row["license"], row["source"]) for row in chats} == {("CC0-1.0", "mine")}
    assert {(row["file"], row["line"]): row["reason"].split(":")[0] for row in read(bench, "train", REJECTED)} == {
        ("mine.jsonl", 3): "not JSON",
        ("mine.jsonl", 4): "the last message is the user's, so there is no answer to learn",
        ("mine.jsonl", 5): "the answer is empty",
        ("mine.jsonl", 6): "not a JSON object",
        ("mine.jsonl", 7): "a double",
    }
    (said,) = bench.logs
    assert "mine.jsonl: 2 rows of prompt, 1 rows of messages" in said
    assert "1 × the answer is empty" in said


def test_the_same_rows_in_any_file(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}\n第{n}"}, ANSWER], "tools": None} for n in range(300)]
    whole, lines = json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))
    (tmp_path / "a.json").write_text(whole)
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    ids = []
    for name in ("a.json", "b.jsonl", "c.jsonl.gz", "d.parquet"):
        bench = run_step("data.chats_file", tmp_path / f"out-{name}", path=tmp_path / name, heldout_fraction=0)
        ids.append([row["id"] for row in read(bench, "train", "chats.parquet")])
    assert len(set(ids[0])) == 300
    assert ids == [ids[0]] * 4
    for name in ("b.jsonl", "c.jsonl.gz", "d.parquet"):
        (tmp_path / name).unlink()
    (tmp_path / "e.json").write_text(whole)
    bench = run_step("data.chats_file", tmp_path / "both", path=tmp_path, heldout_fraction=0)
    assert len(read(bench, "train", "chats.parquet")) == 300
    rejected = [row for row in read(bench, "train", REJECTED) if row["file"] == "e.json"]
    assert rejected[1]["reason"] == "a double: the same as a.json row 2 (row 2)"
    assert '"messages"' in whole.split("\n")[rejected[1]["line"]]


def test_what_utf8_cannot_hold_is_replaced_or_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [ASK, calling(call(arguments={"ci\ud800ty": "\udc00"}))],
            "tools": [{"name": "weather", "x": "\ud800"}],
        },
        {"messages": [{"role": "user", "content": "\ud800?"}, ANSWER]},
        {"\ud800": 1},
    ]
    nested = '{"messages": [], "tools": [' + '{"name": "f", "x":' * 900 + "1" + "}" * 900 + "]}"
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), nested]))
    bench = run_step("data.chats_file", tmp_path / "out", path=path, heldout_fraction=0)
    called, asked = read(bench, "train", "chats.parquet")
    (made,) = json.loads(called["messages"])[1]["tool_calls"]
    assert made["function"]["arguments"] == {"ci\ufffdty": "\ufffd"}
    assert json.loads(called["tools"])[0]["function"]["x"] == "\ufffd"
    assert json.loads(asked["messages"])[0]["content"] == "\ufffd?"
    unknown, deep = read(bench, "train", REJECTED)
    assert (unknown["line"], unknown["reason"].partition(";")[0]) == (3, "unknown format with the fields \ufffd")
    assert (deep["line"], deep["reason"]) == (4, "nested too deeply")


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text("abcd", min_size=1), st.integers(1, 9), min_size=2, max_size=30),
    st.floats(0.02, 0.6),
    st.integers(0, 5),
)
def test_about_the_fraction_is_held_out(clusters: dict[str, int], fraction: float, seed: int) -> None:
    rows = sum(clusters.values())
    held = held_out(clusters, rows, fraction, seed)
    assert 0 < len(held) < len(clusters)
    assert sum(clusters[name] for name in held) <= max(fraction * rows, max(clusters.values()))
    assert held_out(dict(reversed(clusters.items())), rows, fraction, seed) == held


def test_nothing_can_be_held_out_of_one_prompt() -> None:
    assert held_out({"a": 5}, 5, 0, 1) == set()
    with pytest.raises(DataError, match="same prompt"):
        held_out({"a": 5}, 5, 0.1, 1)


def test_conversations_as_a_step(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(40)]
    path = write(tmp_path / "mine.jsonl", *rows, "broken", {"messages": CALLED})
    bench = run_step("data.chats_file", tmp_path / "out", path=path, heldout_fraction=0.2)
    train, items = read(bench, "train", "chats.parquet"), read(bench, "heldout", "items.parquet")
    assert (len(train), len(items)) == (33, 8)
    assert not {row["cluster"] for row in train} & {row["cluster"] for row in items}
    for row in items:
        (message,) = json.loads(row["messages"])
        assert message["content"].replace("question", "answer") == row["reference"]
    assert json.loads(bench.made["heldout"].file("evalset.json").read_text())["scorer"] == "exact"
    (wrong,) = read(bench, "train", REJECTED)
    assert (wrong["file"], wrong["line"]) == ("mine.jsonl", 41)


def test_what_is_asked_with_tools_as_well_is_not_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(8)]
    called = [{"messages": [{"role": "user", "content": f"question {n}"}, calling(call())]} for n in range(1, 8)]
    path = write(tmp_path / "mine.jsonl", *rows, {"prompt": "other", "completion": "yes"}, *called)
    bench = run_step("data.chats_file", tmp_path / "out", path=path, heldout_fraction=0.9)
    (item,) = read(bench, "heldout", "items.parquet")
    assert item["reference"] in ("answer 0", "yes")
    assert len(read(bench, "train", "chats.parquet")) == 15


def test_preferences_as_a_step(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"q{n // 2}", "chosen": f"good {n}", "rejected": "bad"} for n in range(40)]
    rows += [{"prompt": "q0", "chosen": "bad", "rejected": "good 0"}, {"prompt": "q", "chosen": "a"}, rows[3]]
    rows += [{"prompt": "k", "completion": "yes", "label": True}, {"prompt": "k", "completion": "yes", "label": False}]
    path = write(tmp_path / "pairs.jsonl", *rows)
    bench = run_step("data.preferences_file", tmp_path / "out", path=path, heldout_fraction=0.2, license="MIT")
    train, heldout = (read(bench, name, "preferences.parquet") for name in ("train", "heldout"))
    assert len(train) + len(heldout) == 41
    assert 4 <= len(heldout) <= 8
    assert not {row["cluster"] for row in train} & {row["cluster"] for row in heldout}
    (labelled,) = [row for row in train + heldout if row["rejected"] is None]
    assert (labelled["chosen"], json.loads(labelled["prompt"])) == ("yes", [{"role": "user", "content": "k"}])
    assert {row["line"]: row["reason"] for row in read(bench, "train", REJECTED)} == {
        41: "a contradiction: the opposite of pairs.jsonl line 1",
        42: "'rejected' is missing",
        43: "a double: the same as pairs.jsonl line 4",
        45: "a contradiction: the opposite of pairs.jsonl line 44",
    }
    assert "40 rows of prompt with chosen and rejected, 1 rows of prompt with labels" in bench.logs[0]


def test_files_without_a_good_row(tmp_path: Path) -> None:
    for content, hint in (("", "no rows"), ("nothing\n", "line 1: not JSON")):
        path = tmp_path / "c.jsonl"
        path.write_text(content)
        with pytest.raises(DataError, match="no row is one to learn from") as caught:
            run_step("data.chats_file", tmp_path / hint[:4], path=path)
        assert hint in caught.value.hint
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "bad.txt").write_text("text")
    with pytest.raises(DataError, match="no row") as caught:
        run_step("data.chats_file", tmp_path / "again", path=tmp_path / "bad.txt")
    assert "not a format that is read" in caught.value.hint
