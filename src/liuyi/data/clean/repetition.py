"""Repetition inside a document, after Gopher (Rae et al. 2021, table A1): lines, paragraphs and n-grams of words.

A Han character counts as a word, so the same figures hold for Chinese. All documents of a batch are measured together,
by hashes of n-grams.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from liuyi.data.clean.batch import Batch, Class, Floats, Ints, Pieces, ratio

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 8, 10)
ATTRIBUTES = (
    "repeated_lines",
    "repeated_paragraphs",
    *(f"top_{size}gram" for size in TOP_NGRAMS),
    *(f"repeated_{size}grams" for size in DUPLICATE_NGRAMS),
    "run_ratio",
)
_SHORTEST_RUN = 8


def repetition(batch: Batch) -> dict[str, Floats]:
    """The share of characters that stand

    - in lines or paragraphs that occur before in the document (`repeated_lines`, `repeated_paragraphs`),
    - in the most frequent n-gram of words (`top_2gram` …), and in n-grams that occur before (`repeated_5grams` …),
    - in runs of eight or more of the same letter, Han character or full-width mark (`run_ratio`).
    """
    result = {
        "repeated_lines": _repeated(batch, batch.lines),
        "repeated_paragraphs": _repeated(batch, batch.paragraphs),
        "run_ratio": _runs(batch),
    }
    words = batch.words
    word_chars = batch.per_document(words, words.chars)
    starts = np.arange(len(words.owner))
    for size in (1, *sorted({*TOP_NGRAMS, *DUPLICATE_NGRAMS})):
        grams = _Grams(words, starts, size)
        if size in TOP_NGRAMS:
            result[f"top_{size}gram"] = ratio(grams.top_chars(batch.size), word_chars)
        if size in DUPLICATE_NGRAMS:
            result[f"repeated_{size}grams"] = ratio(grams.repeated_chars(batch.size), word_chars)
        starts = grams.starts[grams.times > 1]  # a longer n-gram can only repeat where this one does
    return result


def _repeated(batch: Batch, pieces: Pieces) -> Floats:
    keys = pieces.owner * (len(pieces.distinct) + 1) + pieces.codes
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return ratio(batch.per_document(pieces, pieces.chars * ~first), batch.per_document(pieces, pieces.chars))


class _Grams:
    """The n-grams of one size that begin at the words `starts`; equal ones of one document share a code."""

    def __init__(self, words: Pieces, starts: Ints, size: int) -> None:
        starts = starts[starts + size <= len(words.owner)]
        starts = starts[words.owner[starts] == words.owner[starts + size - 1]]
        keys = words.owner[starts].astype(np.uint64)
        for place in range(size):
            keys *= np.uint64(0x9E3779B97F4A7C15)
            keys += words.codes[starts + place].astype(np.uint64)
            keys ^= keys >> np.uint64(29)
        self.words, self.starts, self.size = words, starts, size
        self.codes = pa.array(keys).dictionary_encode().indices.to_numpy().astype(np.int64)
        self.counts = np.bincount(self.codes)
        self.times = self.counts[self.codes]
        self.is_first = np.ones(len(keys), bool)
        self.is_first[1:] = self.codes[1:] > np.maximum.accumulate(self.codes)[:-1]  # codes count up as they appear

    def repeated_chars(self, documents: int) -> Ints:
        """[documents] characters of words that lie in an n-gram which occurs before."""
        again = self.starts[~self.is_first]
        places = len(self.words.owner) + 1
        steps = np.bincount(again, minlength=places) - np.bincount(again + self.size, minlength=places)
        covered = np.cumsum(steps[:-1]) > 0
        return np.bincount(self.words.owner, self.words.chars * covered, minlength=documents).astype(np.int64)

    def top_chars(self, documents: int) -> Ints:
        """[documents] characters in all occurrences of the n-gram that takes most; 0 where none occurs twice."""
        starts = self.starts[self.is_first]
        ends = np.concatenate([[0], np.cumsum(self.words.chars)])
        chars = (ends[starts + self.size] - ends[starts]) * self.counts * (self.counts > 1)
        top = np.zeros(documents, np.int64)
        np.maximum.at(top, self.words.owner[starts], chars)
        return top


def _runs(batch: Batch) -> Floats:
    points, classes, owner = batch.points, batch.classes, batch.owner
    if not len(points):
        return np.zeros(batch.size, np.float32)
    same = np.flatnonzero((points[1:] == points[:-1]) & (owner[1:] == owner[:-1]))
    begins = np.ones(len(same), bool)
    begins[1:] = np.diff(same) != 1
    starts = same[begins]
    lengths = np.diff(np.append(np.flatnonzero(begins), len(same))) + 1
    counted = np.isin(classes[starts], [Class.LETTER, Class.HAN, Class.WIDE_PUNCTUATION])
    long = (lengths >= _SHORTEST_RUN) & counted
    return ratio(np.bincount(owner[starts[long]], lengths[long], minlength=batch.size), batch.visible)
