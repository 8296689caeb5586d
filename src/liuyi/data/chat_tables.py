"""Conversations as artifacts: chats to learn from, and an eval set of those held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from liuyi.data.chats import Chat
from liuyi.data.corpus import write_table

CHATS = "chats.parquet"
ITEMS = "items.parquet"


def write_chats(folder: Path, chats: Sequence[Chat]) -> None:
    """Write `chats.parquet`: id, messages (JSON), source, license, cluster."""
    columns = {
        "id": [chat.id for chat in chats],
        "messages": [json.dumps(chat.messages, ensure_ascii=False) for chat in chats],
        "source": [chat.source for chat in chats],
        "license": [chat.license for chat in chats],
        "cluster": [chat.cluster for chat in chats],
    }
    write_table(_texts(columns), folder / CHATS)


def write_evalset(folder: Path, name: str, chats: Sequence[Chat]) -> None:
    """Write an eval set whose items ask for the last answer of each conversation, scored by exact match."""
    columns = {
        "id": [chat.id for chat in chats],
        "cluster": [chat.cluster for chat in chats],
        "messages": [json.dumps(chat.messages[:-1], ensure_ascii=False) for chat in chats],
        "reference": [chat.messages[-1]["content"] for chat in chats],
        "lang": [""] * len(chats),
        "kind": ["heldout"] * len(chats),
        "source": [chat.source for chat in chats],
        "license": [chat.license for chat in chats],
    }
    write_table(_texts(columns), folder / ITEMS)
    about = {"name": name, "scorer": "exact", "description": "conversations held out by their prompts"}
    (folder / "evalset.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _texts(columns: dict[str, list[str]]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
