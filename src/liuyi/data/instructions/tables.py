"""Conversations and preferences as artifacts: what is learnt from, and what is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import DataError
from liuyi.data.corpus import Rows

if TYPE_CHECKING:
    import pyarrow as pa

CHATS = "chats.parquet"
PREFERENCES = "preferences.parquet"
ITEMS = "items.parquet"

_CHATS = ("id", "messages", "tools", "source", "license", "cluster")
_PREFERENCES = ("id", "prompt", "chosen", "rejected", "tools", "source", "license", "cluster", "chosen_by")
_ITEMS = ("id", "cluster", "messages", "reference", "lang", "kind", "source", "license")
_ROWS_PER_BATCH = 256


def chats_schema() -> pa.Schema:
    """`chats.parquet`: `messages` and `tools` are JSON; `tools` is empty where none may be called."""
    return _texts(_CHATS)


def preferences_schema() -> pa.Schema:
    """`preferences.parquet`: `prompt` and `tools` are JSON; a labelled answer is chosen or rejected, the other null."""
    return _texts(_PREFERENCES)


def held_out(clusters: Mapping[str, int], rows: int, fraction: float, seed: int) -> set[str]:
    """Clusters drawn at random until about `fraction` of `rows` are in them; at least one stays.

    Raises DataError where a fraction is asked for and all rows that may be held out ask the same.
    """
    if fraction <= 0:
        return set()
    if len(clusters) < 2:
        raise DataError("all rows have the same prompt, so none can be held out", hint="set heldout_fraction: 0")
    names = sorted(clusters)
    random.Random(seed).shuffle(names)
    held: set[str] = set()
    count = 0
    for name in names[:-1]:
        if held and count + clusters[name] > fraction * rows:
            break
        held.add(name)
        count += clusters[name]
    return held


def write_rows(path: Path, schema: pa.Schema, converted: Path, clusters: set[str], *, within: bool) -> int:
    """Write those rows of `converted` whose cluster is among `clusters` (or is not); gives their number."""
    with Rows(path, schema) as rows:
        for row in _read(converted):
            if (row["cluster"] in clusters) == within:
                rows.add(row)
    return rows.count


def write_evalset(folder: Path, name: str, converted: Path, clusters: set[str]) -> int:
    """Write an eval set whose items ask for the last answer of each conversation in `clusters`, scored by exact match;
    gives the number of items.
    """
    with Rows(folder / ITEMS, _texts(_ITEMS)) as items:
        for row in _read(converted):
            if row["cluster"] in clusters:
                *asked, answer = json.loads(row["messages"])
                items.add(
                    {
                        **{column: row[column] for column in ("id", "cluster", "source", "license")},
                        "messages": json.dumps(asked, ensure_ascii=False),
                        "reference": answer["content"],
                        "lang": "",
                        "kind": "heldout",
                    }
                )
    about = {"name": name, "scorer": "exact", "description": "conversations held out by their prompts"}
    (folder / "evalset.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return items.count


def _read(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH):
            yield from batch.to_pylist()


def _texts(names: tuple[str, ...]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in names])
