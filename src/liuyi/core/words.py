"""The words of many texts at once, as numbers: what finding duplicates and contamination compare.

Words are compared after Unicode NFKC and case folding, without punctuation; a Han, kana or Hangul character is a word.

    found = words_of(["Turn ON the lights", "把灯关掉"])
    found.hashes      # one number a word: equal words, equal numbers
    found.offsets     # [0, 4, 8]: where the words of each text begin

A word's number is a polynomial hash of its characters modulo 2⁶⁴ (Karp and Rabin, 1987), taken from one running sum
over all texts, so that nothing is done word by word in Python.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64] | slice
Codes = NDArray[np.uint8] | NDArray[np.uint32]

BLOCK_CHARS = 1 << 16

_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_SINGLE}]|(?:(?![{_SINGLE}])\w)+")
_SINGLE_CHARACTER = re.compile(rf"[{_SINGLE}]")

_BASE = 0x9E3779B97F4A7C15
_MIX_ONE = np.uint64(0xBF58476D1CE4E5B9)
_MIX_TWO = np.uint64(0x94D049BB133111EB)

_TABLE_SIZE = 0x20000
_FIRST_IDEOGRAPH, _FIRST_COMPATIBILITY, _LAST_IDEOGRAPH = 0x20000, 0x2F800, 0x3FFFF
_IN_CONTEXT = np.uint32(0xFFFFFFFF)
"""Stands for a character whose folded form is several characters, or depends on those around it."""
_NO_WORD, _PART, _WHOLE = 0, 1, 2


@dataclass(frozen=True)
class Words:
    """The words of several texts, flat."""

    hashes: Hashes
    """[words]"""
    offsets: NDArray[np.int64]
    """[texts + 1] the first word of each text."""
    starts: NDArray[np.int64]
    """[words] where each word starts, in characters of its folded text."""
    ends: NDArray[np.int64]
    """[words] where each word ends."""

    def runs(self, length: int) -> tuple[Hashes, NDArray[np.int64]]:
        """The hashes of every `length` words in a row, and for each the number of its first word.

        No run crosses from one text into the next.
        """
        count = len(self.hashes) - length + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        inside = np.ones(count, bool)
        for back in range(1, length):
            edges = self.offsets[1:-1] - back
            inside[edges[(edges >= 0) & (edges < count)]] = False
        ((_, keys),) = run_hashes(self.hashes, [length])
        return keys[inside], np.flatnonzero(inside)


def whole_hashes(words: Words) -> Hashes:
    """One number for all words of each text in order: uint64 [texts]; 0 for a text without words."""
    sums = span_hashes(words.hashes, words.offsets[:-1], words.offsets[1:])
    return np.where(words.offsets[:-1] == words.offsets[1:], np.uint64(0), sums)


def fold(text: str) -> str:
    """The text as comparisons see it."""
    return unicodedata.normalize("NFKC", text).casefold()


def unfolded(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in a text, and the same places in its folded form, both ascending, from the beginning to the end.

    They are those before characters that are folded by themselves: what stands between two of them belongs together.
    """
    joined = _fold_each(text) == _IN_CONTEXT
    places = np.concatenate([[0], np.flatnonzero(~joined[1:]) + 1, [len(text)]]) if text else np.zeros(1, np.int64)
    sizes = np.diff(places)
    several = sizes > 1
    several[:1] |= joined[:1]
    for part in np.flatnonzero(several).tolist():
        sizes[part] = len(fold(text[places[part] : places[part + 1]]))
    return places, np.concatenate([[0], np.cumsum(sizes)])


def split(text: str) -> list[str]:
    """The words of one text, in the form in which they are compared."""
    return _WORD.findall(fold(text))


def run_hashes(hashes: Hashes, lengths: Iterable[int]) -> Iterator[tuple[int, Hashes]]:
    """(length, the hash of every so many numbers in a row: uint64 [numbers − length + 1]), short lengths first.

    All lengths together cost no more than the longest.
    """
    wanted = sorted(set(lengths))
    keys = np.zeros(len(hashes) + 1, np.uint64)
    for place in range(min(max(wanted, default=0), len(hashes))):
        keys = keys[:-1] * np.uint64(_BASE)
        keys += hashes[place:]
        if place + 1 in wanted:
            yield place + 1, _mixed(keys)


def blocks(texts: Sequence[Sized]) -> Iterator[slice]:
    """Runs of texts with some `BLOCK_CHARS` characters together: taken so, what `words_of` computes fits the cache."""
    start, chars = 0, 0
    for place, text in enumerate(texts):
        if place > start and chars + len(text) > BLOCK_CHARS:
            yield slice(start, place)
            start, chars = place, 0
        chars += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text."""
    codes, lengths = _folded(texts)
    borders = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64) + 1)])
    kinds = _kinds(codes)
    part = kinds == _PART
    whole = kinds == _WHOLE
    starts, ends = part.copy(), part.copy()
    starts[1:] &= ~part[:-1]
    ends[:-1] &= ~part[1:]
    first = np.flatnonzero(starts | whole)
    last = np.flatnonzero(ends | whole) + 1
    offsets = np.searchsorted(first, borders)
    text_start = np.repeat(borders[:-1], np.diff(offsets))
    return Words(_hashes(codes, first, last), offsets, first - text_start, last - text_start)


def _folded(texts: Sequence[str]) -> tuple[Codes, list[int]]:
    """The code points of all texts, folded, each text followed by one that is no word; and their lengths."""
    joined = "\n".join([*texts, ""])
    if joined.isascii():
        return np.frombuffer(joined.lower().encode(), np.uint8), list(map(len, texts))
    codes = _fold_each(joined)
    if (codes == _IN_CONTEXT).any():
        texts = [fold(text) if (_fold_each(text) == _IN_CONTEXT).any() else text for text in texts]
        codes = _fold_each("\n".join([*texts, ""]), context=False)
    return codes, list(map(len, texts))


def _fold_each(text: str, *, context: bool = True) -> NDArray[np.uint32]:
    """Each code point folded by itself; without `context`, those that cannot be stay as they are."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = _tables()[0].take(codes, mode="clip")
    if codes.max(initial=0) >= _TABLE_SIZE:
        beyond = codes >= _TABLE_SIZE
        plain = (codes < _FIRST_COMPATIBILITY) | (codes > _LAST_IDEOGRAPH)
        folded = np.where(beyond, np.where(plain, codes, _IN_CONTEXT), folded)
    return folded if context else np.where(folded == _IN_CONTEXT, codes, folded)


def _kinds(codes: Codes) -> NDArray[np.uint8]:
    kinds = _tables()[1].take(codes, mode="clip")
    if codes.max(initial=0) >= _TABLE_SIZE:
        beyond = codes >= _TABLE_SIZE
        kinds = np.where(beyond, np.where(codes <= _LAST_IDEOGRAPH, _WHOLE, _NO_WORD), kinds).astype(np.uint8)
    return kinds


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """For every code point below `_TABLE_SIZE`: its folded form, and whether it is part of a word or a word itself."""
    folded = np.arange(_TABLE_SIZE, dtype=np.uint32)
    kinds = np.zeros(_TABLE_SIZE, np.uint8)
    for code in range(_TABLE_SIZE):
        letter = chr(code)
        if _SINGLE_CHARACTER.match(letter):
            kinds[code] = _WHOLE
        elif letter.isalnum() or letter == "_":
            kinds[code] = _PART
        form = letter if letter.isascii() and not letter.isupper() else fold(letter)
        if len(form) != 1 or _acts_on_others(code, form):
            folded[code] = _IN_CONTEXT
        elif form != letter:
            folded[code] = ord(form)
    return folded, kinds


def _acts_on_others(code: int, form: str) -> bool:
    """Whether NFKC may join the character with those before it: marks, and the parts of Hangul syllables."""
    return unicodedata.category(form)[0] == "M" or 0x1100 <= code <= 0x11FF or 0x1100 <= ord(form) <= 0x11FF


def _hashes(codes: Codes, first: NDArray[np.int64], last: NDArray[np.int64]) -> Hashes:
    return span_hashes(letter_hashes(codes), first, last)


def span_hashes(values: Hashes, first: Places, last: Places) -> Hashes:
    """The hash of `values` from each `first` to before each `last`: uint64 [spans]; spans may overlap.

    Places are numbers or a slice of all numbers from 0 to len(values).
    """
    powers, inverses = _powers(1 << max(16, len(values).bit_length()))
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return _mixed((sums[last] - sums[first]) * inverses[first])


def letter_hashes(codes: Codes) -> Hashes:
    """One number for each character or byte."""
    return _LETTERS.take(codes) if codes.dtype == np.uint8 else _letters(codes)


def _letters(codes: Codes) -> Hashes:
    """One number for each character, never 0, which would make `a` and `aa` alike."""
    return (codes.astype(np.uint64) + np.uint64(1)) * _MIX_ONE


@cache
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2⁶⁴."""

    def of(base: int) -> Hashes:
        made = np.full(size, base, np.uint64)
        made[0] = 1
        return np.multiply.accumulate(made)

    return of(_BASE), of(pow(_BASE, -1, 1 << 64))


def _mixed(keys: Hashes) -> Hashes:
    """All bits of each number spread over all others (the finaliser of SplitMix64, Steele et al. 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * _MIX_ONE
    keys = (keys ^ (keys >> np.uint64(27))) * _MIX_TWO
    return keys ^ (keys >> np.uint64(31))


_LETTERS = _letters(np.arange(256, dtype=np.uint32))
