"""What texts share with items is found, and said where; checked against a plain search."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.overlap import FEWEST_WORDS, Overlaps
from liuyi.core.words import split

WORDS = st.lists(st.sampled_from(["a", "b", "C,", "灯", "ﬁ", "½"]), max_size=14).map(" ".join)

WHOLE = st.lists(st.sampled_from(["a", "b", "C,", "灯", "ﬁ", "e\u0301", "각", "\u1100\u1161"]), max_size=14).map(
    " ".join
)
"""No character here becomes two words."""


def plain_search(items: list[str], texts: list[str], ngram: int) -> dict[tuple[int, int], set[int]]:
    """(text, item) → the words of the text that are shared, by trying every pair of places."""
    found: dict[tuple[int, int], set[int]] = {}
    for number, text in enumerate(map(split, texts)):
        for item, words in enumerate(map(split, items)):
            length = min(ngram, len(words))
            shared: set[int] = set()
            if length >= FEWEST_WORDS:
                runs = [words[at : at + length] for at in range(len(words) - length + 1)]
                for at in range(len(text) - length + 1):
                    if text[at : at + length] in runs:
                        shared |= set(range(at, at + length))
            elif words and words == text:
                shared = set(range(len(text)))
            if shared:
                found[number, item] = shared
    return found


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=4), st.integers(4, 7))
def test_the_index_finds_what_a_plain_search_finds(items: list[str], texts: list[str], ngram: int) -> None:
    expected = {pair: len(shared) for pair, shared in plain_search(items, texts, ngram).items()}
    found: dict[tuple[int, int], int] = {}
    for match in Overlaps(items, ngram).find(texts):
        pair = match.text, match.item
        found[pair] = found.get(pair, 0) + len(match.words.split())
    assert found == expected


@settings(deadline=None, max_examples=150)
@given(st.lists(WHOLE, min_size=1, max_size=3), st.lists(WHOLE, min_size=1, max_size=3))
def test_the_place_holds_the_words(items: list[str], texts: list[str]) -> None:
    for match in Overlaps(items, 4).find(texts):
        assert " ".join(split(texts[match.text][match.start : match.end])) == match.words


def test_places_in_a_text_whose_length_changes_when_folded() -> None:
    text = "ﬁrst ½ ﬃ — Ｗｈａｔ is the capital of France? e\u0301tude"
    (match,) = Overlaps(["what IS the capital of France"]).find([text])
    assert text[match.start : match.end] == "Ｗｈａｔ is the capital of France"


def test_texts_of_several_blocks_are_numbered_through() -> None:
    filler = [f"nothing number {number} here " * 400 for number in range(40)]
    texts = [*filler, "so: the quick brown fox jumps", *filler, "the quick brown fox jumps again"]
    assert [match.text for match in Overlaps(["The quick brown fox jumps!"]).find(texts)] == [40, 81]


def test_an_item_in_many_texts_and_many_items_in_a_text() -> None:
    items = [f"item {number} asks for the sum of {number} and {number + 1}" for number in range(500)]
    found = list(Overlaps(items).find([json.dumps(items), items[3], "no sum here"]))
    assert sorted(match.item for match in found if match.text == 0) == list(range(500))
    assert [match.item for match in found if match.text == 1] == [3]
    assert not [match for match in found if match.text == 2]


def test_runs_of_one_word_are_found_at_once() -> None:
    """As many hits as pairs of places would not fit into memory."""
    (match,) = Overlaps([" ".join(["0"] * 5000)]).find([" ".join(["0"] * 50_000)])
    assert match.words.count("0") == 50_000
