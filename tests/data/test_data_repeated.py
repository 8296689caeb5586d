"""Repeated lines, paragraphs and substrings, against searches that try every pair of places."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, map_in_turn, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.hashset import HashSet
from liuyi.core.words import split
from liuyi.data.attributes import with_columns
from liuyi.data.corpus import ATTRIBUTES
from liuyi.data.dedup.counts import repeated
from liuyi.data.dedup.lines import Repeats, pieces_in_group, repeated_pieces
from liuyi.data.dedup.substrings import names_in_group, repeated_substrings

EXAMPLES = 40
ALPHABET = st.sampled_from(["a", "b", "灯", "é", "ab", "\n", "灯光"])
TEXTS = st.lists(
    st.one_of(st.lists(ALPHABET, max_size=40).map("".join), st.text("ab", max_size=60), st.just("a" * 30)),
    min_size=1,
    max_size=5,
)
LINES = st.lists(
    st.sampled_from(["one two three", "One, two: three!", "four five", "把灯关掉", "", " ", "x"]), max_size=6
)


def made(folder: Path, texts: list[str]) -> Path:
    return corpus(folder, [document(text, path=f"{number:04}") for number, text in enumerate(texts)]).path


def spans(parts: list[pa.Array]) -> list[list[tuple[int, int]]]:
    return [[(span["start"], span["end"]) for span in row] for part in parts for row in part.to_pylist()]


def covered(found: list[list[tuple[int, int]]]) -> list[set[int]]:
    return [{place for start, end in row for place in range(start, end)} for row in found]


def substrings_by_search(texts: list[str], length: int) -> list[set[int]]:
    """Characters within windows of bytes that began earlier already, at least a window's length before in one text."""
    first: dict[bytes, tuple[int, int]] = {}
    marked: list[set[int]] = []
    for number, text in enumerate(texts):
        data = text.encode()
        ends: set[int] = set()
        for start in range(len(data) - length + 1):
            at = first.setdefault(data[start : start + length], (number, start))
            if at[0] != number or at[1] <= start - length:
                ends |= set(range(start, start + length))
        places: set[int] = set()
        offset = 0
        for place, letter in enumerate(text):
            size = len(letter.encode())
            if set(range(offset, offset + size)) <= ends:
                places.add(place)
            offset += size
        marked.append(places)
    return marked


@settings(deadline=None, max_examples=EXAMPLES)
@given(TEXTS, st.integers(4, 12), st.sampled_from([3, 1 << 20]))
def test_substrings_are_what_a_search_finds(tmp_path_factory, no_engine, texts, length, at_once) -> None:
    folder = tmp_path_factory.mktemp("substrings")
    found = spans(list(repeated_substrings(made(folder / "c", texts), folder, length, windows_at_once=at_once)))
    assert covered(found) == substrings_by_search(texts, length)


@pytest.fixture(scope="module")
def no_engine() -> None:
    from liuyi.data.dedup import lines, substrings

    patch = pytest.MonkeyPatch()
    patch.setattr(substrings, "map_groups", map_in_turn)
    patch.setattr(lines, "map_groups", map_in_turn)
    yield
    patch.undo()


def test_a_run_of_one_letter_keeps_its_first_window(tmp_path: Path, no_engine) -> None:
    (only,) = spans(list(repeated_substrings(made(tmp_path / "c", ["a" * 1000]), tmp_path, 200)))
    assert only == [(200, 1000)]


def test_substrings_of_long_texts(tmp_path: Path, no_engine) -> None:
    """Passages planted in texts of several blocks, at known places; 199 bytes in common are not enough."""
    base = [prose(number, 12_000) for number in range(3)]
    passage, short = prose(90, 60)[:200], prose(91, 60)[:199]
    texts = [base[0], base[1][:5000] + passage + base[1][5000:] + passage, passage + base[2] + short, short + "."]
    found = spans(list(repeated_substrings(made(tmp_path / "c", texts), tmp_path, 200)))
    second = len(base[1]) + 200
    assert found[0] == []
    assert [row[0] for row in found[1:3]] == [(second, second + 200), (0, 200)]
    assert [len(row) for row in found] == [0, 1, 1, 0]


def test_equal_windows_have_equal_names() -> None:
    """What winnowing promises: the name of a window depends on nothing but the window."""
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice(list("abcd"), 300)) for _ in range(20)]
    length = 40
    names: dict[str, set[int]] = {}
    for text in texts:
        for start in range(0, 300 - length, 7):
            window = text[start : start + length]
            (row,) = names_in_group(length, pa.table({"text": [window]}))["name"].to_pylist()
            names.setdefault(window, set()).update(row)
            assert set(row) <= set(names_in_group(length, pa.table({"text": [text]}))["name"].to_pylist()[0])
    assert all(len(found) == 1 for found in names.values())


def pieces(text: str, unit: str) -> list[tuple[int, int]]:
    if unit == "line":
        return [match.span() for match in re.finditer(r"[^\n]+\n?", text)]
    found, start = [], 0
    for part in re.split(r"((?:^[^\S\n]*\n)+)", text, flags=re.MULTILINE):
        if part.strip():
            found.append((start, start + len(part)))
        elif found and part:
            found[-1] = (found[-1][0], start + len(part))
        start += len(part)
    return found


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    st.lists(LINES.map("\n".join), min_size=1, max_size=6),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["line", "paragraph"]),
)
def test_pieces_are_what_counting_finds(tmp_path_factory, no_engine, texts, documents, keep_first, unit) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    rule = Repeats(unit, documents, 2, keep_first)
    found = spans(list(repeated_pieces(made(folder / "c", texts), folder, rule)))
    keys = [[(tuple(split(text[slice(*span)])), span) for span in pieces(text, unit)] for text in texts]
    counts = Counter(key for row in keys for key in {key for key, _ in row})
    seen: set[tuple[str, ...]] = set()
    expected: list[list[tuple[int, int]]] = []
    for row in keys:
        expected.append([])
        for key, span in row:
            if len(key) >= 2 and counts[key] >= documents:
                if seen.isdisjoint({key}) and keep_first:
                    seen.add(key)
                else:
                    expected[-1].append(span)
    trimmed = [[(start, end) for start, end in row] for row in found]
    assert [[texts[number][slice(*span)].strip() for span in row] for number, row in enumerate(trimmed)] == [
        [texts[number][slice(*span)].strip() for span in row] for number, row in enumerate(expected)
    ]


def test_pieces_are_lines_and_paragraphs() -> None:
    text = "first line here\nsecond line here\n\n  \nnext paragraph here now\n"
    group = pa.table({"text": [text, ""]})
    for unit, expected in (("line", [(0, 16), (16, 33), (37, 61)]), ("paragraph", [(0, 37), (37, 61)])):
        table = pieces_in_group(unit, 3, group)
        assert list(zip(table["start"][0].as_py(), table["end"][0].as_py(), strict=True)) == expected
        assert table["hash"][1].as_py() == []


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6), st.integers(1, 3), st.integers(1, 40))
def test_counts_do_not_depend_on_how_many_are_counted_at_once(
    documents: list[list[int]], at_least: int, at_once: int
) -> None:
    parts = [(np.array(row, np.uint64), np.full(len(row), number)) for number, row in enumerate(documents)]
    total = sum(map(len, documents))
    hashes, first, counts = repeated(lambda: iter(parts), total, at_least, at_once)
    often = Counter(value for row in documents for value in row)
    expected = sorted(value for value, count in often.items() if count >= at_least)
    assert hashes.tolist() == expected
    assert counts.tolist() == [often[value] for value in expected]
    assert first.tolist() == [next(n for n, row in enumerate(documents) if value in row) for value in expected]


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_a_hash_set_holds_what_was_put_in(keys: list[int], others: list[int]) -> None:
    asked = np.array([*others, *keys, *[key ^ 1 for key in keys]], np.uint64)
    known = HashSet(np.array(keys, np.uint64))
    found, places = known.members(asked)
    assert found.tolist() == [number for number, key in enumerate(asked.tolist()) if key in set(keys)]
    assert (known.keys[places] == asked[found]).all()


def test_the_steps_mark_and_selection_cuts(tmp_path: Path) -> None:
    """A footer goes from all documents but the first, a quoted passage from the second that has it."""
    footer = "This page was made by the office of pages and may be copied by nobody at all.\n"
    quote = prose(77, 60)[:300].replace("\n", " ")
    texts = [prose(number) + (quote if number in (4, 9) else "") + "\n\n" + footer for number in range(14)]
    source = corpus(tmp_path / "source", [document(text, path=f"{number:02}") for number, text in enumerate(texts)])
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": source}).made["corpus"]
    lines = run_step("data.dedup_lines", tmp_path / "lines", {"corpus": cleaned}).made["corpus"]
    marked = run_step("data.dedup_substrings", tmp_path / "substrings", {"corpus": lines}).made["corpus"]
    kinds = [
        sorted({span["kind"] for span in row})
        for row in pq.read_table(marked.path / ATTRIBUTES)["repeated"].to_pylist()
    ]
    assert kinds[0] == []
    assert kinds[1] == ["line", "paragraph"]
    assert kinds[9] == ["line", "paragraph", "substring"]
    train = run_step("data.select", tmp_path / "select", {"corpus": marked}, heldout_fraction=0.0).made["train"]
    kept = pq.read_table(train.path / "documents.parquet")["text"].to_pylist()
    assert [footer in text for text in kept] == [True] + [False] * 13
    assert [quote[20:-20] in text for text in kept] == [number == 4 for number in range(14)]


def test_documents_that_go_keep_nothing(tmp_path: Path, no_engine) -> None:
    """A duplicate or a contaminated document that stands first is no original: the passage stays in a later one."""
    passage = prose(5, 60)
    source = made(tmp_path / "source", [passage + end for end in "wxyz"])
    (tmp_path / "out").mkdir()
    schema = pa.schema([("duplicate_kind", pa.string()), ("contaminated_by", pa.list_(pa.string()))])
    measured = pa.table([["near", "", "", ""], [[], ["item"], [], []]], schema=schema)
    with_columns(source, tmp_path / "out", schema, [measured])
    found = spans(list(repeated_substrings(tmp_path / "out", tmp_path, 200)))
    assert [bool(row) for row in found] == [False, False, False, True]
    rule = Repeats("line", 2, 4, True)
    marks = spans(list(repeated_pieces(tmp_path / "out", tmp_path / "lines", rule)))
    assert [bool(row) for row in marks] == [False, False, False, True]
