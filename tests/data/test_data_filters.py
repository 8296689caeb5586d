"""The figures of the filters against slow, plain counting."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.clean import boilerplate, layout, quality, repetition
from liuyi.data.clean.batch import Batch, Class
from liuyi.data.clean.filters import FILTERS, measure, schema

EXAMPLES = 40
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=6)
WORDS = st.lists(
    st.lists(st.sampled_from(["a", "bb", "ccc", "汉", "x y"]), max_size=40).map(" ".join), min_size=1, max_size=5
)

PROSE = (
    "Read a file and return its lines. The file is opened in text mode, and it is closed again when the "
    "last of the lines has been read. An error is raised if there is no such file, or if it cannot be decoded."
)


def batch(*texts: str) -> Batch:
    return Batch(pa.array(texts, pa.string()))


@settings(deadline=None, max_examples=EXAMPLES)
@given(TEXTS)
def test_characters_by_class(texts: list[str]) -> None:
    counts = batch(*texts).counts
    for text, row in zip(texts, counts, strict=True):
        assert row.sum() == len(text)
        assert row[Class.HAN] == sum(
            "\u3400" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" or c == "〇" for c in text if c < "\U00010000"
        ) + sum("\U00020000" <= c <= "\U0003ffff" for c in text)
        below = [c for c in text if c < "\U00010000"]
        assert row[Class.SPACE] == sum(map(str.isspace, below))
        assert row[Class.DIGIT] == sum(unicodedata.category(c) == "Nd" for c in below)


@settings(deadline=None, max_examples=EXAMPLES)
@given(TEXTS)
def test_every_filter_gives_a_row_a_document(texts: list[str]) -> None:
    table = measure(pa.array(texts))
    assert table.num_rows == len(texts)
    assert table.schema == schema(FILTERS)
    for name in table.schema.names:
        assert table[name].null_count == 0
        if pa.types.is_floating(table.schema.field(name).type):
            assert np.isfinite(table[name].to_numpy()).all()


@settings(deadline=None, max_examples=EXAMPLES)
@given(TEXTS)
def test_documents_do_not_touch_each_other(texts: list[str]) -> None:
    together = measure(pa.array(texts)).to_pylist()
    assert together == [measure(pa.array([text])).to_pylist()[0] for text in texts]


@settings(deadline=None, max_examples=EXAMPLES)
@given(WORDS)
def test_repeated_ngrams_by_plain_counting(texts: list[str]) -> None:
    measured = repetition.repetition(batch(*texts))
    for row, text in enumerate(texts):
        words = text.split()
        total = sum(map(len, words))
        for size in repetition.DUPLICATE_NGRAMS:
            seen: set[tuple[str, ...]] = set()
            covered: set[int] = set()
            for start in range(len(words) - size + 1):
                gram = tuple(words[start : start + size])
                if gram in seen:
                    covered |= set(range(start, start + size))
                seen.add(gram)
            expected = sum(len(words[place]) for place in covered) / total if total else 0
            assert measured[f"repeated_{size}grams"][row] == pytest.approx(expected, abs=1e-6)
        for size in repetition.TOP_NGRAMS:
            grams = Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
            expected = max((sum(map(len, gram)) * n for gram, n in grams.items() if n > 1), default=0)
            assert measured[f"top_{size}gram"][row] == pytest.approx(expected / total if total else 0, abs=1e-6)


@settings(deadline=None, max_examples=EXAMPLES)
@given(st.lists(st.lists(st.sampled_from(["one", "two", "", "三"]), max_size=12), min_size=1, max_size=4))
def test_repeated_lines_by_plain_counting(documents: list[list[str]]) -> None:
    measured = repetition.repetition(batch(*("\n".join(lines) for lines in documents)))["repeated_lines"]
    for row, lines in enumerate(documents):
        filled = [line for line in lines if line]
        again = sum(len(line) for place, line in enumerate(filled) if line in filled[:place])
        assert measured[row] == pytest.approx(again / sum(map(len, filled)) if filled else 0, abs=1e-6)


def test_runs_of_one_character() -> None:
    measured = repetition.repetition(batch("啊" * 20 + "好", "a" * 7, "=" * 50, "！" * 9, "ab" * 20))["run_ratio"]
    assert measured == pytest.approx([20 / 21, 0, 0, 1, 0])


def test_quality_of_prose() -> None:
    measured = quality.quality(batch(PROSE, "中文没有空格。" * 3, "", "%$# {};" * 9))
    assert measured["words"] == pytest.approx([len(PROSE.split()), 21, 0, 10])
    letters = [word for word in PROSE.split()]
    assert measured["mean_word_chars"][0] == pytest.approx(sum(map(len, letters)) / len(letters))
    assert measured["han_ratio"] == pytest.approx([0, 1, 0, 0])
    assert measured["stop_words"][0] >= 7
    assert measured["alpha_ratio"][0] > 0.9
    assert measured["symbol_ratio"][3] == 1


def test_broken_text_is_counted() -> None:
    measured = quality.quality(batch("fine", "bro\ufffdken", "锟斤拷", "\ue000\ue001"))["broken_ratio"]
    assert measured[0] == 0
    assert (measured[1:] > 0.1).all()


def test_layout_tells_code_tables_lists_and_links() -> None:
    code = ">>> import os\n>>> os.getcwd()\nx = 1\nfor line in lines:\n"
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n=====\n1.0 2.0 3.0 4.0\n"
    items = "- one thing\n* another thing\n1. a third thing\n• a fourth\n"
    links = "https://a.example/x\n[text](https://b.example)\n"
    measured = layout.layout(batch(code, table, items, links, PROSE))
    assert measured["code_lines"][0] > 0.6
    assert measured["table_lines"][1] == 1
    assert measured["bullet_lines"][2] == 1
    assert measured["link_lines"][3] == 1
    for name in ("code_lines", "table_lines", "bullet_lines", "link_lines", "short_lines", "ellipsis_lines"):
        assert measured[name][4] == 0
    assert measured["terminal_lines"][4] == 1


def test_items_that_are_sentences_are_prose() -> None:
    measured = layout.layout(
        batch("1. 先关闭电源，等待设备冷却。\n2. 用软布擦去灰尘。", "- Close the door.\n- Open it.")
    )
    assert measured["bullet_lines"].tolist() == [0, 0]


def test_boilerplate() -> None:
    licence = (
        "Permission is hereby granted, free of charge, to any person\nThe above copyright notice shall be included\n"
    )
    measured = boilerplate.boilerplate(
        batch(
            licence,
            PROSE,
            "Code generated by protoc-gen-go. DO NOT EDIT.",
            "Lorem ipsum dolor sit amet",
            PROSE * 9 + "All rights reserved.",
        )
    )
    assert measured["licence_ratio"][0] == 1
    assert measured["licence_ratio"][1] == 0
    assert measured["licence_ratio"][4] < 0.1
    assert list(measured["is_generated"]) == [False, False, True, False, False]
    assert measured["is_placeholder"].to_pylist() == [False, False, False, True, False]
