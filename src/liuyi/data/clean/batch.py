"""A batch of documents with the views that filters share: characters by class, words, lines. Each is made once."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

HAN = r"[\p{Han}]"
"""One Han character, for RE2."""


class Class(IntEnum):
    """What a character is, as far as the filters care."""

    LETTER = 0
    """Of any script but Han."""
    HAN = 1
    DIGIT = 2
    SPACE = 3
    ASCII_PUNCTUATION = 4
    WIDE_PUNCTUATION = 5
    """Chinese and Japanese: `，。！？；：、「」《》…` and the like."""
    OTHER = 6
    """Symbols, emoji, punctuation of other scripts."""
    BROKEN = 7
    """U+FFFD, private use, control characters: what a wrong decoding leaves."""


@dataclass(frozen=True)
class Pieces:
    """Words or lines of all documents of a batch, flat."""

    owner: Ints
    """[pieces] the document each belongs to, ascending."""
    chars: Ints
    """[pieces] length in characters."""
    codes: Ints
    """[pieces] equal numbers for equal texts."""
    texts: pa.Array
    """[pieces] the texts."""
    distinct: pa.Array
    """The text of each code."""


class Batch:
    """Documents' texts, non-null. Every array it gives has one row a document, in their order."""

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts.cast(pa.large_string())
        self.size = len(texts)

    @cached_property
    def strings(self) -> list[str]:
        """[docs] the texts as Python strings."""
        return self.texts.to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def chars(self) -> Ints:
        """[docs] length in characters."""
        return _numbers(pc.utf8_length(self.texts))

    @cached_property
    def points(self) -> NDArray[np.uint8] | NDArray[np.uint32]:
        """[characters] Unicode code points of all documents, one after another; a byte each where all are ASCII."""
        joined = "".join(self.strings)
        if joined.isascii():
            return np.frombuffer(joined.encode(), np.uint8)
        return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")

    @cached_property
    def classes(self) -> NDArray[np.uint8]:
        """[characters] the class of each character."""
        points = self.points
        return _class_table()[points if points.itemsize == 1 else np.minimum(points, len(_class_table()) - 1)]

    @cached_property
    def owner(self) -> Ints:
        """[characters] the document each character belongs to."""
        return np.repeat(np.arange(self.size), self.chars)

    @cached_property
    def counts(self) -> Ints:
        """[docs, classes] how many characters of each class."""
        ends = np.cumsum(self.chars)
        parts = zip((ends - self.chars).tolist(), ends.tolist(), strict=True)
        rows = [np.bincount(self.classes[start:end], minlength=len(Class)) for start, end in parts]
        return np.array(rows, np.int64).reshape(self.size, len(Class))

    @cached_property
    def visible(self) -> Ints:
        """[docs] characters that are not white space."""
        return self.chars - self.counts[:, Class.SPACE]

    @cached_property
    def han_ratio(self) -> Floats:
        """[docs] Han characters among letters of all scripts."""
        han = self.counts[:, Class.HAN]
        return ratio(han, han + self.counts[:, Class.LETTER])

    @cached_property
    def words(self) -> Pieces:
        """Words between white space, lower-cased; each Han character counts as a word."""
        spaced = pc.if_else(
            pa.array(self.counts[:, Class.HAN] > 0),
            pc.replace_substring_regex(self.texts, f"({HAN})", r" \1 "),
            self.texts,
        )
        return _pieces(pc.utf8_split_whitespace(pc.utf8_lower(pc.utf8_trim_whitespace(spaced))))

    @cached_property
    def lines(self) -> Pieces:
        """Lines without the white space around them; empty ones are left out."""
        return _pieces(pc.split_pattern(self.texts, "\n"), trim=True)

    @cached_property
    def paragraphs(self) -> Pieces:
        """Blocks of text between empty lines."""
        return _pieces(pc.split_pattern_regex(self.texts, r"\n[ \t]*\n"), trim=True)

    def per_document(self, pieces: Pieces, weights: NDArray[np.generic] | None = None) -> Ints:
        """[docs] the number of pieces, or the sum of `weights` over them."""
        return np.bincount(pieces.owner, weights, minlength=self.size).astype(np.int64)


def ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Floats:
    """part / whole as float32, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part), np.float64), where=whole != 0).astype(np.float32)  # type: ignore[no-any-return]


def _pieces(lists: pa.Array, trim: bool = False) -> Pieces:
    texts = lists.flatten()
    owner = np.repeat(np.arange(len(lists)), _numbers(pc.list_value_length(lists)))
    if trim:
        texts = pc.utf8_trim_whitespace(texts)
    chars = _numbers(pc.utf8_length(texts))
    if not chars.all():
        wanted = chars > 0
        texts, owner, chars = texts.filter(pa.array(wanted)), owner[wanted], chars[wanted]
    encoded = texts.dictionary_encode()
    return Pieces(owner, chars, _numbers(encoded.indices), texts, encoded.dictionary)


def _numbers(array: pa.Array) -> Ints:
    return array.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


@cache
def _class_table() -> NDArray[np.uint8]:
    """The class of every code point below U+40000, and of all beyond in the last place."""
    table = np.fromiter(map(_class_of, range(0x10000)), np.uint8, 0x10000)
    beyond = np.full(0x30001, Class.OTHER, np.uint8)
    beyond[0x10000:0x30000] = Class.HAN  # planes 2 and 3 are CJK extensions B to H
    return np.concatenate([table, beyond])


def _class_of(point: int) -> Class:
    letter = chr(point)
    if 0x3400 <= point <= 0x9FFF or 0xF900 <= point <= 0xFAFF or point == 0x3007:
        return Class.HAN
    category = unicodedata.category(letter)
    if letter.isspace():
        return Class.SPACE
    if category[0] == "L" or category[0] == "M":
        return Class.LETTER
    if category == "Nd":
        return Class.DIGIT
    if category[0] == "C" or point == 0xFFFD:
        return Class.BROKEN if category != "Cf" else Class.OTHER
    if point < 0x80:
        return Class.ASCII_PUNCTUATION
    if 0x3000 <= point <= 0x303F or 0xFF00 <= point <= 0xFFEF or letter in "…—“”‘’·":
        return Class.WIDE_PUNCTUATION
    return Class.OTHER
