"""Conversations in every format, and every kind of wrong row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_support import run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.chats import WrongRow, read_chats, split, to_messages
from liuyi.data.corpus import REJECTED

ASK, ANSWER = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}, ANSWER]},
        {"prompt": "Hello?", "completion": "Hello."},
        {"prompt": [ASK], "completion": [ANSWER]},
        {"instruction": "Hello?", "input": "", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]},
    ],
)
def test_formats(row: dict[str, Any]) -> None:
    assert to_messages(row) == [ASK, ANSWER]


def test_system_input_and_history() -> None:
    assert to_messages({"system": "Be kind.", "prompt": "Hello?", "completion": "Hello."}) == [SYSTEM, ASK, ANSWER]
    row = {"instruction": "Add", "input": "1 2", "output": "3", "history": [["Hello?", "Hello."]], "system": "Be kind."}
    assert to_messages(row) == [
        SYSTEM,
        ASK,
        ANSWER,
        {"role": "user", "content": "Add\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "user", "value": "Hello?"},
        {"from": "assistant", "value": "Hello."},
    ]
    assert to_messages({"conversations": turns}) == [SYSTEM, ASK, ANSWER]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "not empty"),
        ({"messages": "Hello"}, "must be a list"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1 must be text, not a number"),
        ({"messages": [{"role": "user", "content": None}]}, "not null"),
        ({"messages": ["Hello"]}, "message 1 must be an object"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "calls tools"),
        ({"messages": [ASK, {"role": "user", "content": [{"type": "image_url"}]}]}, "must be text, not a list"),
        ({"conversations": [{"from": "humen", "value": "x"}]}, "did you mean 'human'"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 1 must be text"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "preference pair"),
        ({"prompt": "x", "completion": ["a"]}, "'completion' must be text, not a list"),
        ({"instruction": "x", "output": 1}, "'output' must be text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "pair of texts"),
        ({"question": "x", "answer": "y"}, "unknown format"),
    ],
)
def test_wrong_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(WrongRow, match=reason):
        to_messages(row)


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows),
        encoding="utf-8",
    )
    return path


def test_a_file_with_wrong_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "a", "completion": "A"},
        "",
        "{not json",
        {"messages": [ASK]},
        {"messages": [ANSWER]},
        {"messages": [ASK, SYSTEM, ANSWER]},
        {"prompt": "b", "completion": "  "},
        '"text"',
        {"instruction": "a", "output": "A"},
        {"prompt": "打开灯", "completion": "好"},
    )
    chats, rejected = read_chats(path, license="CC0-1.0")
    assert [(chat.line, chat.messages[-1]["content"]) for chat in chats] == [(1, "A"), (10, "好")]
    assert {chat.license for chat in chats} == {"CC0-1.0"}
    assert {row.line: row.reason.split(":")[0] for row in rejected} == {
        3: "not JSON",
        4: "the last message is the user's, so there is no answer to learn",
        5: "there is no message of the user",
        6: "a system message stands after the first place",
        7: "the answer is empty",
        8: "a row must be an object, not text",
        9: "the same conversation as line 1",
    }
    assert rejected[0].head == "{not json"


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "completion": "x"} for number in range(5)]
    lines, _ = read_chats(write(tmp_path / "c.jsonl", *rows), license="x")
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    array, _ = read_chats(tmp_path / "c.json", license="x")
    assert lines == array


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.02, 0.6), st.integers(0, 5))
def test_split_holds_out_whole_prompts(prompts: list[int], fraction: float, seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"prompt": str(prompt), "completion": str(number)} for number, prompt in enumerate(prompts)]
        chats, _ = read_chats(write(Path(folder) / "c.jsonl", *rows), license="x")
    if len(set(prompts)) == 1:
        with pytest.raises(DataError, match="same prompt"):
            split(chats, fraction, seed)
        return
    train, heldout = split(chats, fraction, seed)
    assert train
    assert heldout
    assert {chat.id for chat in train} | {chat.id for chat in heldout} == {chat.id for chat in chats}
    assert not {chat.cluster for chat in train} & {chat.cluster for chat in heldout}
    assert split(chats[::-1], fraction, seed)[1] == heldout[::-1]


def test_the_step(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(40)]
    bench = run_step(
        "data.chats_file", tmp_path / "out", path=write(tmp_path / "mine.jsonl", *rows, "broken"), heldout_fraction=0.2
    )
    train = pq.read_table(bench.made["train"].file("chats.parquet")).to_pylist()
    items = pq.read_table(bench.made["heldout"].file("items.parquet")).to_pylist()
    assert (len(train), len(items)) == (32, 8)
    assert all([message["role"] for message in json.loads(row["messages"])] == ["user", "assistant"] for row in train)
    for row in items:
        (message,) = json.loads(row["messages"])
        assert message["content"].replace("question", "answer") == row["reference"]
    assert json.loads(bench.made["heldout"].file("evalset.json").read_text())["scorer"] == "exact"
    (wrong,) = pq.read_table(bench.made["train"].file(REJECTED)).to_pylist()
    assert (wrong["file"], wrong["line"]) == ("mine.jsonl", 41)


def test_a_file_without_conversations(tmp_path: Path) -> None:
    for content, hint in (("", "empty"), ("nothing\n", "line 1: not JSON")):
        path = tmp_path / "c.jsonl"
        path.write_text(content)
        with pytest.raises(DataError, match="no row is a conversation") as caught:
            run_step("data.chats_file", tmp_path / hint[:4], path=path)
        assert hint in caught.value.hint
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(DataError, match="is not JSON"):
        read_chats(tmp_path / "bad.json", license="x")
    with pytest.raises(DataError, match="cannot be read"):
        read_chats(tmp_path / "missing.json", license="x")
