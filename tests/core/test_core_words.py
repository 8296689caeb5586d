"""Words of many texts at once are the words of each text by itself, in any script."""

from __future__ import annotations

import re
import unicodedata
from itertools import chain

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liuyi.core.words import BLOCK_CHARS, blocks, fold, split, unfolded, words_of

LETTERS = st.text(st.sampled_from("ab_1 \n,.ＡＢß½ﾊﾟ́가각가灯豈𠀀𝐀😀İǅ"), max_size=12)
TEXTS = st.lists(st.one_of(LETTERS, st.text(max_size=20)), max_size=6)


def test_words_of_two_scripts() -> None:
    assert split("Turn ON the living-room lights!") == ["turn", "on", "the", "living", "room", "lights"]
    assert split("把ＡＢ3号灯关掉。") == ["把", "ab3", "号", "灯", "关", "掉"]


@settings(deadline=None, max_examples=200)
@given(TEXTS)
@example(["\u0131\u0307", "e\u0301", "\u1100\u1161", "\uff76\uff9e", "\U0002f800", "", "ss ß SS"])
def test_equal_words_have_equal_numbers_and_others_differ(texts: list[str]) -> None:
    found = words_of(texts)
    expected = [split(text) for text in texts]
    assert np.diff(found.offsets).tolist() == list(map(len, expected))
    number_of: dict[str, int] = {}
    for word, number in zip(chain(*expected), found.hashes.tolist(), strict=True):
        assert number_of.setdefault(word, number) == number
    assert len(set(number_of.values())) == len(number_of)


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_places_are_those_of_the_folded_text(texts: list[str]) -> None:
    found = words_of(texts)
    for text, start, end in zip(texts, found.offsets[:-1], found.offsets[1:], strict=True):
        folded = fold(text)
        spans = zip(found.starts[start:end], found.ends[start:end], strict=True)
        assert [folded[first:last] for first, last in spans] == split(text)


@settings(deadline=None, max_examples=200)
@given(st.one_of(LETTERS, st.text(max_size=20)))
def test_places_in_a_text_and_in_its_folded_form(text: str) -> None:
    places, folded = unfolded(text)
    assert (places[0], places[-1], folded[-1]) == (0, len(text), len(fold(text)))
    for place, at in zip(places, folded, strict=True):
        assert fold(text[:place]) == fold(text)[:at]


def test_every_character_by_itself() -> None:
    """Characters of all planes; those that NFKC changes in context too."""
    points = [*range(0xAC00), *range(0xE000, 0x20000, 7), *range(0x20000, 0x40000, 997), 0xE0101, 0x10FFFD]
    letters = [f"a{chr(point)}b" for point in points]
    found = words_of(letters)
    words = [split(letter) for letter in letters]
    assert np.diff(found.offsets).tolist() == list(map(len, words))
    alone = {word: words_of([word]).hashes.tolist() for word in {word for each in words[::50] for word in each}}
    for each, start in list(zip(words, found.offsets, strict=False))[::50]:
        for place, word in enumerate(each):
            assert alone[word] == [found.hashes[start + place]]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=5), st.integers(1, 4))
def test_runs_are_the_ngrams_of_each_text(texts: list[str], length: int) -> None:
    keys, first = words_of(texts).runs(length)
    grams = []
    start = 0
    for text in texts:
        words = text.split()
        grams += [(start + at, tuple(words[at : at + length])) for at in range(len(words) - length + 1)]
        start += len(words)
    assert first.tolist() == [at for at, _ in grams]
    assert len(set(zip(keys.tolist(), [gram for _, gram in grams], strict=True))) == len(set(keys.tolist()))
    assert len(set(keys.tolist())) == len({gram for _, gram in grams})


def test_words_are_python_words_after_folding() -> None:
    text = "It's naïve_1 — ΣΊΣΥΦΟΣ, Straße № 5; ½ ﬁne"
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert split(text) == re.findall(r"\w+", folded)


@given(st.lists(st.integers(0, BLOCK_CHARS * 2), max_size=12))
def test_blocks_hold_all_texts_in_order(sizes: list[int]) -> None:
    texts = ["x" * size for size in sizes]
    found = list(blocks(texts))
    assert list(chain(*(texts[block] for block in found))) == texts
    for block in found:
        assert len(texts[block]) == 1 or sum(map(len, texts[block])) <= BLOCK_CHARS
