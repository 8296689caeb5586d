"""Where the words of given items occur in texts: what contamination is decided by.

    index = Overlaps(["what is the capital of the french republic ?"], ngram=13)
    for found in index.find(texts):
        found.item, found.text, found.start, found.end

An item occurs in a text if `ngram` words in a row of it do (13 after Brown et al., 2020), or, for a shorter item, if
all of it does; an item of fewer than four words only if a text is that item and nothing else.

The items are indexed and texts stream past, so memory does not grow with the texts. Candidates are found by hash, at
tens of megabytes of text a second, and then compared word by word: there are no false hits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liuyi.core.hashset import HashSet
from liuyi.core.words import Hashes, Words, blocks, run_hashes, split, unfolded, words_of

NGRAM = 13
FEWEST_WORDS = 4

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """Words in a row that an item and a text share."""

    text: int
    """Which of the texts."""
    item: int
    """Which of the items."""
    words: str
    """The words as they were compared, with single spaces."""
    start: int
    """Where they start in the text, in characters."""
    end: int


class _Grams:
    """The n-grams of one length of all items, by hash; each once an item, or runs of one word would be slow."""

    def __init__(self, keys: Hashes, items: Ints, places: Ints) -> None:
        order = np.lexsort((places, items, keys))
        keys, items, places = keys[order], items[order], places[order]
        new = np.ones(len(keys), bool)
        new[1:] = (keys[1:] != keys[:-1]) | (items[1:] != items[:-1])
        self._items, self._places = items[new], places[new]
        self._hashes = HashSet(keys[new])

    def among(self, keys: Hashes) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """For each of `keys` that is here: its number, and each item with its word at which the n-gram first stands."""
        found, first = self._hashes.members(keys)
        last = np.searchsorted(self._hashes.keys, keys[found], "right")
        for number, start, end in zip(found.tolist(), first.tolist(), last.tolist(), strict=True):
            yield number, list(zip(self._items[start:end].tolist(), self._places[start:end].tolist(), strict=True))


class Overlaps:
    """An index of items, asked for what texts share with them."""

    def __init__(self, items: Sequence[str], ngram: int = NGRAM) -> None:
        self._items = [split(item) for item in items]
        words = words_of(items)
        lengths = np.minimum(np.diff(words.offsets), ngram)
        self._grams: dict[int, _Grams] = {}
        for length in np.unique(lengths[lengths >= FEWEST_WORDS]).tolist():
            keys, first = words.runs(length)
            owners = np.searchsorted(words.offsets, first, "right") - 1
            own = lengths[owners] == length
            self._grams[length] = _Grams(keys[own], owners[own], (first - words.offsets[owners])[own])
        self._whole: dict[tuple[str, ...], list[int]] = {}
        for item in np.flatnonzero((lengths > 0) & (lengths < FEWEST_WORDS)).tolist():
            self._whole.setdefault(tuple(self._items[item]), []).append(item)

    def find(self, texts: Sequence[str]) -> Iterator[Match]:
        """What the texts share with the items, text by text; runs of words that touch are one match."""
        for block in blocks(texts):
            part = texts[block]
            words = words_of(part)
            hits = self._hits(words)
            for text in sorted({*hits, *self._short(words)}):
                for match in _Text(part[text], words, text).matches(hits.get(text, []), self._items, self._whole):
                    yield Match(block.start + text, *match)

    def _hits(self, words: Words) -> dict[int, list[_Hit]]:
        """By text: n-grams whose hashes are those of items."""
        hits: dict[int, list[_Hit]] = {}
        for length, keys in run_hashes(words.hashes, self._grams):
            for place, owners in self._grams[length].among(keys):
                text = int(np.searchsorted(words.offsets, place, "right")) - 1
                if place + length <= words.offsets[text + 1]:
                    first = place - int(words.offsets[text])
                    hits.setdefault(text, []).extend(_Hit(first, length, *owner) for owner in owners)
        return hits

    def _short(self, words: Words) -> list[int]:
        """The texts that may be an item of a few words."""
        longest = max(map(len, self._whole), default=0)
        counts = np.diff(words.offsets)
        short: list[int] = np.flatnonzero((counts > 0) & (counts <= longest)).tolist()
        return short


@dataclass(frozen=True)
class _Hit:
    """A run of words of a text, and where an item is thought to have it too."""

    first: int
    length: int
    item: int
    place: int


class _Text:
    """A text that is compared word by word."""

    def __init__(self, text: str, words: Words, number: int) -> None:
        self._words = split(text)
        part = slice(int(words.offsets[number]), int(words.offsets[number + 1]))
        self._starts, self._ends = words.starts[part], words.ends[part]
        self._places, self._folded = unfolded(text)

    def matches(
        self, hits: Sequence[_Hit], items: Sequence[list[str]], whole: dict[tuple[str, ...], list[int]]
    ) -> Iterator[tuple[int, str, int, int]]:
        """(item, words, start, end) of each match, by item and place."""
        spans = [(item, 0, len(self._words)) for item in whole.get(tuple(self._words), ())]
        for hit in hits:
            last = hit.first + hit.length
            if self._words[hit.first : last] == items[hit.item][hit.place : hit.place + hit.length]:
                spans.append((hit.item, hit.first, last))
        for item, first, last in _joined(spans):
            start = self._places[np.searchsorted(self._folded, self._starts[first], "right") - 1]
            end = self._places[np.searchsorted(self._folded, self._ends[last - 1])]
            yield item, " ".join(self._words[first:last]), int(start), int(end)


def _joined(spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """(item, first word, the word after the last), those of an item that overlap or touch as one."""
    spans.sort()
    item, first, last = -1, 0, 0
    for span in spans:
        if span[0] == item and span[1] <= last:
            last = max(last, span[2])
            continue
        if item >= 0:
            yield item, first, last
        item, first, last = span
    if item >= 0:
        yield item, first, last
