"""Has the model seen the test? Items whose words occur in the training data are flagged.

An item is flagged if `n` words in a row of its prompt occur in a training text (13 after Brown et al., 2020), or, for
a shorter prompt, if the whole prompt does; a prompt of fewer than four words only if a training text is that prompt.
Words are compared after Unicode NFKC and case folding, without punctuation; a Han, kana or Hangul character is a word.

The items are indexed and the training texts stream past, so memory does not grow with the training data. Candidates
are found by rolling hash and then compared word by word: there are no false hits.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError

NGRAM = 13
FEWEST_WORDS = 4
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|(?:(?![\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])\w)+"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_TEXTS = {
    "corpus": ("documents.parquet", "text"),
    "chats": ("chats.parquet", "messages"),
    "preferences": ("preferences.parquet", "prompt"),
}


@dataclass(frozen=True)
class Hit:
    """Where an item's words were found."""

    item: int
    words: str
    source: str


def words(text: str) -> list[str]:
    """The words that comparisons see."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def training_texts(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every document or message of a corpus, chats or preferences.

    Raises DataError for another kind of artifact: it holds no text of its own.
    """
    import pyarrow.parquet as pq

    if kind not in _TEXTS:
        raise DataError(f"a {kind} holds no text", where=str(folder), hint=f"give {', '.join(_TEXTS)}")
    file, column = _TEXTS[kind]
    for batch in pq.ParquetFile(folder / file).iter_batches(columns=["id", column], batch_size=4096):
        for id, value in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if column == "text":
                yield id, value or ""
            else:
                for message in json.loads(value):
                    yield id, str(message.get("content") or "")


def contaminated(prompts: Sequence[str], texts: Iterable[tuple[str, str]], *, ngram: int = NGRAM) -> dict[int, Hit]:
    """The prompts that occur in the training texts, by their position, each with the first place found.

    `texts` are (source, text). Linear in the training text, times the number of different prompt lengths below `ngram`.
    """
    index = _Index([words(prompt) for prompt in prompts], ngram)
    hits: dict[int, Hit] = {}
    for source, text in texts:
        for item, found in index.find(text):
            if item not in hits:
                hits[item] = Hit(item, found, source)
        if len(hits) == len(prompts):
            break
    return hits


class _Index:
    """The n-grams of all items by length and hash, and the items that are too short for n-grams."""

    def __init__(self, items: Sequence[list[str]], ngram: int) -> None:
        self._ids: dict[str, int] = {}
        self._whole: dict[tuple[str, ...], list[int]] = {}
        grams: dict[int, dict[tuple[str, ...], list[int]]] = {}
        for item, sequence in enumerate(items):
            for word in sequence:
                self._ids.setdefault(word, len(self._ids) + 1)
            length = min(ngram, len(sequence))
            if length < FEWEST_WORDS:
                if sequence:
                    self._whole.setdefault(tuple(sequence), []).append(item)
                continue
            of_length = grams.setdefault(length, {})
            for start in range(len(sequence) - length + 1):
                owners = of_length.setdefault(tuple(sequence[start : start + length]), [])
                if not owners or owners[-1] != item:
                    owners.append(item)
        self._grams = grams
        self._hashes = {
            length: np.unique(np.concatenate([_hashes(self._numbers(list(gram)), length) for gram in of_length]))
            for length, of_length in grams.items()
        }
        self._longest_whole = max(map(len, self._whole), default=0)

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Items whose words occur in `text`, with those words."""
        sequence = words(text)
        if len(sequence) <= self._longest_whole:
            for item in self._whole.get(tuple(sequence), ()):
                yield item, " ".join(sequence)
        numbers = self._numbers(sequence)
        for length, known in self._hashes.items():
            if len(sequence) < length:
                continue
            for start in np.flatnonzero(np.isin(_hashes(numbers, length), known)):
                gram = tuple(sequence[start : start + length])
                for item in self._grams[length].get(gram, ()):
                    yield item, " ".join(gram)

    def _numbers(self, sequence: list[str]) -> NDArray[np.uint64]:
        """Word numbers; 0 for a word that no item holds."""
        return np.fromiter((self._ids.get(word, 0) for word in sequence), dtype=np.uint64, count=len(sequence))


def _hashes(numbers: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Polynomial hashes modulo 2⁶⁴ of every run of `length` numbers, uint64 [words − length + 1]."""
    runs = len(numbers) - length + 1
    out = np.zeros(runs, dtype=np.uint64)
    for offset in range(length):
        out = out * _MULTIPLIER + numbers[offset : offset + runs] * np.uint64(0xD6E8FEB86659FD93) + np.uint64(1)
    return out
