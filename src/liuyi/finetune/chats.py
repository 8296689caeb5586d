"""Conversations as training examples: the chat template's tokens, with what the assistant says to be learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liuyi.core.errors import DataError, ModelError
from liuyi.model.chat import encode_chat
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.packing import Example

Chat = tuple[str, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""(id, messages, tools that may be called)."""

_COLUMNS = ("id", "messages", "tools")


@dataclass(frozen=True)
class Chats:
    """Examples that can be trained on, and those that cannot, with the reason."""

    examples: list[Example] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(example) for example in self.examples)

    @property
    def learnt(self) -> int:
        return sum(int(example.learnt.sum()) for example in self.examples)


def read_chats(path: Path) -> list[Chat]:
    """Ids, messages and tools of `chats.parquet`; a table without a column `tools` has none."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name in _COLUMNS])
    return [(row["id"], json.loads(row["messages"]), json.loads(row.get("tools") or "[]")) for row in table.to_pylist()]


def encode_chats(
    chats: Iterable[Chat],
    tokenizer: Tokenizer,
    longest: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Chats:
    """Each conversation as an example.

    One of more than `longest` tokens, one in which the assistant says nothing, and one that the template does not
    render as written are left out and named, never cut. Raises DataError when none is left.
    """
    result = Chats()
    for done, (id, messages, tools) in enumerate(chats, start=1):
        try:
            ids, said = encode_chat(tokenizer, messages, tools=tools)
            silent = _without_calls(messages)
            drops_calls = silent != messages and encode_chat(tokenizer, silent, tools=tools)[0] == ids
        except ModelError as error:
            if not tokenizer.chat_template:
                raise
            result.left_out[id] = error.message
            continue
        if drops_calls:
            result.left_out[id] = "the chat template leaves out calls of tools"
        elif len(ids) > longest:
            result.left_out[id] = f"{len(ids)} tokens, more than {longest}"
        elif not any(said[1:]):
            result.left_out[id] = "the assistant says nothing"
        else:
            result.examples.append(Example(np.array(ids, dtype=np.int64), np.array(said, dtype=np.bool_)))
        on_progress(done)
    if not result.examples:
        reasons = "; ".join(f"{id}: {reason}" for id, reason in list(result.left_out.items())[:3])
        raise DataError("no conversation can be trained on", hint=reasons or "the file has none")
    return result


def _without_calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
