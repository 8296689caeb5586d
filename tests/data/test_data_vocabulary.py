"""Training a tokenizer: which texts it sees, which it is measured on, and beside what."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from data_support import artifact, corpus, document, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect, Table
from liuyi.data import vocabulary
from liuyi.data.corpus import Document
from liuyi.model.tokenizer import Tokenizer, train_bpe

CHINESE = "北京的秋天很美，叶子慢慢变黄了。"


def drawn(documents: list[Document], share: int, tested: int) -> tuple[list[str], list[str]]:
    """What a plain reading of the rule gives: by hash, until `share` is reached to train, then `tested` to test."""
    train: list[str] = []
    test: list[str] = []
    for one in sorted(documents, key=lambda one: hashlib.sha256(one.id.encode()).digest()):
        if sum(len(text.encode()) for text in train) < share:
            train.append(one.text)
        elif sum(len(text.encode()) for text in test) < tested:
            test.append(one.text)
    return train, test


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40), share=st.integers(1, 9000), tested=st.integers(0, 3000)
)
@settings(max_examples=40, deadline=None)
def test_the_texts_to_train_and_to_test_on_are_drawn_by_hash(
    sizes: list[int], share: int, tested: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = [document(prose(n, words=size), path=f"{n}") for n, size in enumerate(sizes)]
    source = corpus(tmp_path_factory.mktemp("drawn") / "corpus", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_TESTED_BYTES", tested)
        found = vocabulary._sample(source, vocabulary._sizes(source), share)
    train, test = drawn(documents, share, tested)
    assert [text for _, text in found.train] == train
    assert [text for _, text in found.test] == test


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    texts = [CHINESE * 9 + f"第{n}篇" if n % 2 else prose(n, words=200) for n in range(60)]
    return corpus(tmp_path / "corpus", [document(text, path=f"{n}") for n, text in enumerate(texts)])


def test_others_are_measured_on_the_same_unseen_texts(source: Artifact, tmp_path: Path) -> None:
    (tmp_path / "bytes").mkdir()
    train_bpe(["x"], 260).save(tmp_path / "bytes")
    other = artifact(tmp_path / "bytes", "tokenizer")
    made = run_step("data.tokenizer", tmp_path / "run", {"texts": source, "beside": other}, vocab_size=500)
    shown = Effect.load(made.made["tokenizer"].path)
    assert shown is not None
    (table,) = shown.blocks
    assert isinstance(table, Table)
    assert table.columns[4:] == (f"tokenizer {other.digest[:12]}",)
    assert table.note == f"tokenizer {other.digest[:12]} has 260 tokens"
    for language, size, tokens, own, beside in table.rows:
        assert beside == 1.0  # a token a byte
        assert own == round(int(size) / int(tokens), 3) > 2, language
    assert {row[0] for row in table.rows} == {"en", "zh"}


def test_without_others_nothing_is_compared(source: Artifact, tmp_path: Path) -> None:
    made = run_step("data.tokenizer", tmp_path / "run", {"texts": source}, vocab_size=500).made["tokenizer"]
    shown = Effect.load(made.path)
    assert shown is not None
    assert isinstance(shown.blocks[0], Table)
    assert shown.blocks[0].columns == ("language", "bytes", "tokens", "bytes per token")
    assert Tokenizer.load(made.path).vocab_size <= 500


def test_a_single_document_leaves_nothing_to_measure_on(tmp_path: Path) -> None:
    made = run_step("data.tokenizer", tmp_path / "run", {"texts": corpus(tmp_path / "one", [document(prose(1))])})
    (said,) = made.logs
    assert said.endswith("Too little text to leave any unseen.")
