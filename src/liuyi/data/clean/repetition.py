"""Repetition inside a document, after Gopher (Rae et al. 2021, table A1): lines, paragraphs and n-grams of words.

A Han character counts as a word, so the same figures hold for Chinese. All documents of a batch are measured together:
equal n-grams are brought together by sorting hashes of them, and a longer one is looked for only where a shorter one
occurs twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.data.clean.batch import Batch, Class, Floats, Ints, Pieces, ratio

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
ATTRIBUTES = (
    "repeated_lines",
    "repeated_paragraphs",
    "duplicate_line_fraction",
    "duplicate_paragraph_fraction",
    *(f"top_{size}gram" for size in TOP_NGRAMS),
    *(f"repeated_{size}grams" for size in DUPLICATE_NGRAMS),
    "run_ratio",
)
_SHORTEST_RUN = 8


def repetition(batch: Batch) -> dict[str, Floats]:
    """The share of characters that stand

    - in lines or paragraphs that occur before in the document: `repeated_lines` and `repeated_paragraphs` (Gopher drops
      above 0.20), by number instead `duplicate_line_fraction` and `duplicate_paragraph_fraction` (0.30);
    - in the most frequent n-gram of words: `top_2gram` (0.20), `top_3gram` (0.18), `top_4gram` (0.16);
    - in n-grams that occur before: `repeated_5grams` (0.15), and 0.01 less for each further size to `repeated_10grams`;
    - in runs of eight or more of the same letter, Han character or full-width mark (`run_ratio`).
    """
    result = {"run_ratio": _runs(batch)}
    for name, number, pieces in (
        ("repeated_lines", "duplicate_line_fraction", batch.lines),
        ("repeated_paragraphs", "duplicate_paragraph_fraction", batch.paragraphs),
    ):
        keys = pieces.owner * (len(pieces.distinct) + 1) + pieces.codes
        again = np.zeros(len(keys), bool)
        again[_repeated(keys, np.arange(len(keys))).again()] = True
        result[name] = ratio(batch.per_document(pieces, pieces.chars * again), batch.per_document(pieces, pieces.chars))
        result[number] = ratio(batch.per_document(pieces, again), batch.per_document(pieces))
    words = batch.words
    word_chars = batch.per_document(words, words.chars)
    grams = _Grams.of(words)
    for size in (*TOP_NGRAMS, *DUPLICATE_NGRAMS):
        grams = grams.longer()
        if size in TOP_NGRAMS:
            result[f"top_{size}gram"] = ratio(grams.top_chars(batch.size), word_chars)
        else:
            result[f"repeated_{size}grams"] = ratio(grams.repeated_chars(batch.size), word_chars)
    return result


@dataclass(frozen=True)
class _Repeated:
    """Things whose key occurs twice or more, brought together by their keys."""

    places: Ints
    """[things] where each stands, group by group."""
    keys: NDArray[Any]
    """[things] the key of each."""
    counts: Ints
    """[groups] how many have the same key."""
    first: Ints
    """[groups] where the first of them stands."""

    def again(self) -> Ints:
        """The places of those that are not the first of their group, in order."""
        return np.sort(self.places[self.places != np.repeat(self.first, self.counts)])


def _repeated(keys: NDArray[Any], places: Ints) -> _Repeated:
    """[keys] at `places` as groups; those that occur once are left out."""
    order = np.argsort(keys)
    ordered = keys[order]
    same = np.zeros(len(keys) + 1, bool)
    same[1:-1] = ordered[1:] == ordered[:-1]
    follows, leads = same[:-1], same[1:]
    twice = follows | leads
    begins = np.flatnonzero(~follows[twice])
    places = places[order[twice]]
    counts = np.diff(np.append(begins, len(places)))
    first = np.minimum.reduceat(places, begins) if len(begins) else begins
    return _Repeated(places, ordered[twice], counts, first)


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one size that occur twice or more in a document, by the words that they begin with."""

    words: Pieces
    ends: Ints
    """[words + 1] characters before each word."""
    left: Ints
    """[words] how many words its document has from this one on."""
    size: int
    found: _Repeated

    @classmethod
    def of(cls, words: Pieces) -> _Grams:
        """Single words, each as if it occurred twice: most do, and n-grams of two words are looked at anyway."""
        every = np.arange(len(words.owner))
        ends = np.concatenate([[0], np.cumsum(words.chars)])
        sizes = np.bincount(words.owner)
        left = np.repeat(np.cumsum(sizes), sizes) - every
        keys = _mixed(words.owner.astype(np.uint64), words.codes)
        return cls(words, ends, left, 1, _Repeated(every, keys, every, every))

    def longer(self) -> _Grams:
        """Those one word longer; they can only occur twice where these do."""
        size, starts = self.size + 1, self.found.places
        fits = self.left[starts] >= size
        starts = starts[fits]
        keys = _mixed(self.found.keys[fits], self.words.codes[starts + size - 1])
        return _Grams(self.words, self.ends, self.left, size, _repeated(keys, starts))

    def repeated_chars(self, documents: int) -> Ints:
        """[documents] characters of words that lie in an n-gram which occurs before."""
        again = self.found.again()
        covered_to = np.concatenate([[0], again[:-1] + self.size]) if len(again) else again
        chars = self.ends[again + self.size] - self.ends[np.maximum(again, covered_to)]
        return np.bincount(self.words.owner[again], chars, minlength=documents).astype(np.int64)

    def top_chars(self, documents: int) -> Ints:
        """[documents] characters in all occurrences of the n-gram that takes most; 0 where none occurs twice."""
        first = self.found.first
        top = np.zeros(documents, np.int64)
        chars = (self.ends[first + self.size] - self.ends[first]) * self.found.counts
        np.maximum.at(top, self.words.owner[first], chars)
        return top


def _mixed(keys: NDArray[np.uint64], codes: Ints) -> NDArray[np.uint64]:
    keys = keys * np.uint64(0x9E3779B97F4A7C15) + codes.astype(np.uint64)
    return keys ^ (keys >> np.uint64(29))


def _runs(batch: Batch) -> Floats:
    points = batch.points
    same = np.flatnonzero(points[1:] == points[:-1])
    same = same[np.isin(batch.classes[same], [Class.LETTER, Class.HAN, Class.WIDE_PUNCTUATION])]
    ends = np.cumsum(batch.chars)
    owner = np.searchsorted(ends, same, "right")
    within = same + 1 < ends[owner]
    same, owner = same[within], owner[within]
    begins = np.ones(len(same), bool)
    begins[1:] = np.diff(same) != 1
    lengths = np.diff(np.append(np.flatnonzero(begins), len(same))) + 1
    long = lengths >= _SHORTEST_RUN
    return ratio(np.bincount(owner[begins][long], lengths[long], minlength=batch.size), batch.visible)
