"""Has the model seen the test? Items whose words occur in the training data are flagged.

What counts as occurring is said in `liuyi.core.overlap`: 13 words in a row, or all of a shorter prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from liuyi.core.errors import DataError
from liuyi.core.overlap import NGRAM, Overlaps

_CHARS_AT_ONCE = 1 << 18
TEXTS = {
    "corpus": ("documents.parquet", "text"),
    "chats": ("chats.parquet", "messages"),
    "preferences": ("preferences.parquet", "prompt"),
}
"""Kinds of artifacts that hold texts to learn from: their file, and its column of texts."""


@dataclass(frozen=True)
class Hit:
    """Where an item's words were found."""

    item: int
    words: str
    source: str


def training_texts(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every document or message of a corpus, chats or preferences.

    Raises DataError for another kind of artifact: it holds no text of its own.
    """
    import pyarrow.parquet as pq

    if kind not in TEXTS:
        raise DataError(f"a {kind} holds no text", where=str(folder), hint=f"give {', '.join(TEXTS)}")
    file, column = TEXTS[kind]
    for batch in pq.ParquetFile(folder / file).iter_batches(columns=["id", column], batch_size=1024):
        for id, value in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if column == "text":
                yield id, value or ""
            else:
                for message in json.loads(value):
                    yield id, str(message.get("content") or "")


def contaminated(prompts: Sequence[str], texts: Iterable[tuple[str, str]], *, ngram: int = NGRAM) -> dict[int, Hit]:
    """The prompts that occur in the training texts, by their position, each with the first place found.

    `texts` are (source, text), and stream past.
    """
    index = Overlaps(prompts, ngram)
    hits: dict[int, Hit] = {}
    for batch in batches(texts):
        for match in index.find([text for _, text in batch]):
            if match.item not in hits:
                hits[match.item] = Hit(match.item, " ".join(match.words.split()[:ngram]), batch[match.text][0])
        if len(hits) == len(prompts):
            break
    return hits


def batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """The texts in order, some at a time, as many as are quick to search together."""
    batch: list[tuple[str, str]] = []
    chars = 0
    for one in texts:
        batch.append(one)
        chars += len(one[1])
        if chars >= _CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
