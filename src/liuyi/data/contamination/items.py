"""The items of eval sets, as far as training data must not hold them: what they ask, without their common preamble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError

_FILE = "items.parquet"


@dataclass(frozen=True)
class Items:
    """Items of several eval sets; each list has one entry an item."""

    ids: list[str]
    evalsets: list[str]
    """The digest of the eval set of each."""
    prompts: list[str]


def read_items(evalsets: Sequence[Artifact]) -> Items:
    """The items of all eval sets, one set after another. System messages are left out: many items share them.

    Raises DataError naming an item whose messages are not what they should be.
    """
    import pyarrow.parquet as pq

    found = Items([], [], [])
    for evalset in evalsets:
        table = pq.read_table(evalset.file(_FILE), columns=["id", "messages"])
        for id, messages in zip(table["id"].to_pylist(), table["messages"].to_pylist(), strict=True):
            found.ids.append(id)
            found.evalsets.append(evalset.digest)
            found.prompts.append(_prompt(messages, f"item {id} of {evalset.digest[:12]}"))
    return found


def _prompt(messages: str, where: str) -> str:
    try:
        said = [message.get("content") or "" for message in json.loads(messages) if message["role"] != "system"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError("its messages are no list of {role, content}", where=where) from error
    return "\n".join(map(str, said))
