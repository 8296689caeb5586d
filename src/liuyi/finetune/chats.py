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


def read_chats(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Ids and messages of `chats.parquet`."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "messages"])
    return [(row["id"], json.loads(row["messages"])) for row in table.to_pylist()]


def encode_chats(
    chats: Iterable[tuple[str, Sequence[Mapping[str, Any]]]],
    tokenizer: Tokenizer,
    seq_len: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Chats:
    """Each conversation as an example.

    One longer than `seq_len`, one in which the assistant says nothing, and one that the template does not render as
    written are left out and named, never cut. Raises DataError when none is left.
    """
    result = Chats()
    for done, (id, messages) in enumerate(chats, start=1):
        try:
            ids, said = encode_chat(tokenizer, messages)
        except ModelError as error:
            if not tokenizer.chat_template:
                raise
            result.left_out[id] = error.message
            continue
        if len(ids) > seq_len:
            result.left_out[id] = f"{len(ids)} tokens, more than {seq_len}"
        elif not any(said[1:]):
            result.left_out[id] = "the assistant says nothing"
        else:
            result.examples.append(Example(np.array(ids, dtype=np.int64), np.array(said, dtype=np.bool_)))
        on_progress(done)
    if not result.examples:
        reasons = "; ".join(f"{id}: {reason}" for id, reason in list(result.left_out.items())[:3])
        raise DataError("no conversation can be trained on", hint=reasons or "the file has none")
    return result
