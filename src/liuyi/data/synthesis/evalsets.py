"""Eval sets, so that nothing is made that they ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from liuyi.core.errors import DataError
from liuyi.core.overlap import Overlaps


def finder(folders: Sequence[Path], ngram: int) -> Callable[[str], str]:
    """A function that gives the words which a text shares with an item of the eval sets; empty if it shares none.

    Raises DataError where an eval set's items cannot be read.
    """
    items = [item for folder in folders for item in _asked(folder)]
    if not items:
        return lambda text: ""
    overlaps = Overlaps(items, ngram)

    def find(text: str) -> str:
        match = next(overlaps.find([text]), None)
        return match.words if match else ""

    return find


def _asked(folder: Path) -> Iterator[str]:
    """What the user says in each item."""
    import pyarrow.parquet as pq

    for row in pq.read_table(folder / "items.parquet", columns=["id", "messages"]).to_pylist():
        try:
            messages = json.loads(row["messages"])
        except ValueError as error:
            raise DataError(f"messages are not JSON: {error}", where=f"item {row['id']}") from None
        yield from (str(message.get("content") or "") for message in messages if message.get("role") == "user")
