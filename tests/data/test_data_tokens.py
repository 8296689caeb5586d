"""Tokens: the order of the stream, the memory that it takes to write one, and the ways back to documents."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import DataError
from liuyi.data.corpus import Document
from liuyi.data.look.where import batch_of_step, pieces, rows_of_batch, sources, surroundings
from liuyi.data.tokens import Tokens, write_tokens
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.batches import IGNORE, ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream

CHINESE = "北京的秋天很美，叶子慢慢变黄了。我们沿着河边走，一直走到天黑。"


def documents(count: int, words: int = 60) -> list[Document]:
    return [
        document(
            (CHINESE * (number % 4) if number % 3 == 0 else prose(number, words=words)),
            cluster=f"c{number % 5}",
            path=f"{number}.txt",
            license="MIT" if number % 2 else "CC0-1.0",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([CHINESE * 3, *(prose(number) for number in range(20))], 400)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder: Path, source: Path, tokenizer: Tokenizer, **how: int) -> Tokens:
    folder.mkdir()
    write_tokens(folder, source, tokenizer, **how)
    return Tokens(folder)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60), buckets=st.sampled_from([900, 5000]))
@settings(max_examples=15, deadline=None)
def test_the_order_is_that_of_the_hashes_whatever_the_buckets(
    sizes: list[int], buckets: int, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    texts = [document(prose(number, words=size), path=f"{number}") for number, size in enumerate(sizes)]
    source = corpus(folder / "corpus", texts)
    made = written(folder / "many", source.path, tokenizer, bucket_bytes=buckets)
    written(folder / "one", source.path, tokenizer)
    assert files(folder / "many") == files(folder / "one")
    ordered = sorted(texts, key=lambda one: hashlib.sha256(one.id.encode()).digest())
    expected = [id for one in ordered for id in [*tokenizer.encode(one.text), tokenizer.eos_id]]
    assert made.ids.tolist() == expected
    assert made.documents["id"].to_pylist() == [one.id for one in ordered]
    assert made.documents["url"].to_pylist() == [one.url for one in ordered]


def test_memory_is_bounded_by_the_bucket_and_not_by_the_corpus(tokenizer: Tokenizer, tmp_path: Path) -> None:
    bucket = 1 << 16
    source = corpus(tmp_path / "corpus", documents(3000, words=100))
    pq.write_table(pq.read_table(source.file("documents.parquet")), source.file("documents.parquet"), row_group_size=64)
    counted, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    (tmp_path / "tokens").mkdir()
    pa.set_memory_pool(counted)
    try:
        about = write_tokens(tmp_path / "tokens", source.path, tokenizer, bucket_bytes=bucket)
    finally:
        pa.set_memory_pool(before)
    assert about.bytes > 16 * bucket
    assert 0 < counted.max_memory() < 8 * bucket


def test_a_corpus_that_holds_nothing_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", [])
    with pytest.raises(DataError, match="no document fits"):
        written(tmp_path / "tokens", source.path, tokenizer)


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Document]]:
    folder = tmp_path_factory.mktemp("stream")
    given_ = documents(60)
    source = corpus(folder / "corpus", given_)
    written(folder / "tokens", source.path, tokenizer)
    return folder / "tokens", {one.id: one for one in given_}


def test_what_surrounds_a_token_is_what_its_document_says(
    stream: tuple[Path, dict[str, Document]], tokenizer: Tokenizer
) -> None:
    folder, known = stream
    tokens = Tokens(folder)
    for position in range(0, len(tokens), 97):
        (piece,) = pieces(tokens, position, position + 1)
        document = known[piece.document["id"]]
        assert (piece.document["url"], piece.document["license"]) == (document.url, document.license)
        ids = [*tokenizer.encode(document.text), tokenizer.eos_id]
        assert ids[piece.offset] == tokens.ids[position]
        whole = surroundings(tokens, tokenizer, position, reach=10**6)
        assert whole.before + whole.token + whole.after == f"{document.text}<|endoftext|>"
        place = sum(len(tokenizer.token_bytes(id)) for id in ids[: piece.offset])
        before = len(whole.before.encode())
        assert before <= place < before + len(whole.token.encode())
        near = surroundings(tokens, tokenizer, position, reach=7)
        assert near.token == whole.token
        assert whole.before.endswith(near.before)
        assert whole.after.startswith(near.after)
        assert len(tokenizer.encode(near.before)) <= 14
    with pytest.raises(DataError, match="outside the stream"):
        surroundings(tokens, tokenizer, len(tokens))
    with pytest.raises(DataError, match="outside the stream"):
        surroundings(tokens, tokenizer, -1)


@pytest.mark.parametrize(("seq_len", "phases"), [(16, [0]), (250, [0]), (16, [0, 3000])])
def test_the_documents_of_a_batch_are_the_tokens_that_it_predicts(
    stream: tuple[Path, dict[str, Document]], seq_len: int, phases: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(stream[0], folder)
    (folder / "mixture.json").write_text(json.dumps({"phases": [{"start": start} for start in phases]}))
    (tmp_path / "liuyi.json").write_text(json.dumps({"seq_len": seq_len, "batch_rows": 4, "seed": 11}))
    tokens = Tokens(folder)
    starts = [-(-start // seq_len) for start in phases]
    batches = ShuffledBatches(TokenRows(TokenStream(folder), seq_len), batch_rows=4, seed=11, phase_starts=starts)
    for index in (0, 1, 7, 40):
        (batch,) = batches(index)
        rows = rows_of_batch(folder, tmp_path, index)
        assert len(rows) == 4
        for row, targets in zip(rows, batch.targets.numpy(), strict=True):
            predicted = targets[targets != IGNORE]
            told = [tokens.ids[piece.position : piece.position + piece.tokens] for piece in row.pieces]
            assert np.concatenate(told).tolist() == predicted.tolist()
            for piece in row.pieces:
                assert tokens.locate(piece.position).document == piece.document["id"]
                assert tokens.locate(piece.position).offset == piece.offset
        told_tokens = sum(piece.tokens for row in rows for piece in row.pieces)
        assert sum(count for *_, count in sources(rows)) == told_tokens == int((batch.targets != IGNORE).sum())


def test_the_log_says_which_batch_a_step_took(tmp_path: Path) -> None:
    """After a rollback from step 5 to step 3, step 3 was taken again with a later batch."""
    taken = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (3, 7), (4, 8)]
    lines = [json.dumps({"step": step, "batch": batch, "loss": 1.0}) for step, batch in taken]
    (tmp_path / "training.jsonl").write_text("\n".join(lines) + "\n")
    assert [batch_of_step(tmp_path, step) for step in range(5)] == [0, 1, 2, 7, 8]
    with pytest.raises(DataError, match="no step 5"):
        batch_of_step(tmp_path, 5)


def test_a_checkpoint_from_elsewhere_has_no_batches(stream: tuple[Path, dict[str, Document]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no training\.jsonl"):
        batch_of_step(tmp_path, 0)
    with pytest.raises(DataError, match="does not say seq_len and batch_rows and seed"):
        rows_of_batch(stream[0], tmp_path, 0)
    (tmp_path / "training.jsonl").write_text("")
    with pytest.raises(DataError, match="has no step 0") as caught:
        batch_of_step(tmp_path, 0)
    assert "empty" in caught.value.hint
