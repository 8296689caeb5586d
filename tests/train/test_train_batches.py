"""Batches: bijections, nothing lost or repeated, documents kept apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_support import EOS, random_documents, write_tokens

from liuyi.core.errors import DataError
from liuyi.train.batches import IGNORE, ShuffledBatches, permute
from liuyi.train.data import TokenRows, TokenStream


class Numbers:
    """Rows that are their own numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def read(self, rows: np.ndarray) -> list[int]:
        return rows.tolist()


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(2, 3000), st.integers(0, 2**40), st.data())
def test_permutation_is_pointwise(size: int, key: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    whole = permute(np.arange(size), size, key)
    assert permute(np.array(index), size, key).tolist() == whole[index].tolist()


def test_permutation_mixes() -> None:
    """Neighbours land apart, and keys give unlike orders: ranks correlate no more than those of random orders do."""
    size = 4000
    orders = [permute(np.arange(size), size, key) for key in range(0, 40, 4)]
    for order in orders:
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 / size**0.5
    for one, other in pairwise(orders):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / size**0.5


@settings(deadline=None)
@given(rows=st.integers(1, 60), share=st.integers(1, 5), workers=st.integers(1, 4), micro=st.integers(1, 5))
def test_the_first_epoch_meets_every_row_once(rows: int, share: int, workers: int, micro: int) -> None:
    """In the micro-batches of training, as many of them for each worker."""
    met, counts = [], set()
    for worker in range(workers):
        batches = ShuffledBatches(
            Numbers(rows), batch_rows=share * workers, seed=2, micro_rows=micro, worker=worker, workers=workers
        )
        found = list(batches.first_epoch())
        counts.add(len(found))
        trained = [batch for index in range(-(-rows // (share * workers))) for batch in batches(index)]
        assert [numbers.tolist() for numbers, _ in found] == trained
        met += [row for numbers, fresh in found for row in numbers[:fresh]]
    assert sorted(met) == list(range(rows))
    assert len(counts) == 1


@settings(deadline=None)
@given(
    rows=st.integers(1, 60),
    share=st.integers(1, 5),
    workers=st.integers(1, 4),
    others=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_workers_neither_lose_nor_repeat(
    rows: int, share: int, workers: int, others: int, epochs: int, seed: int
) -> None:
    """Whole epochs hold every row once each, and another number of workers sees the same global batches."""
    batch_rows = share * workers * others
    batches = -(-rows * epochs // batch_rows)

    def seen(count: int) -> list[int]:
        readers = [
            ShuffledBatches(Numbers(rows), batch_rows=batch_rows, seed=seed, worker=worker, workers=count, micro_rows=2)
            for worker in range(count)
        ]
        return [row for index in range(batches) for reader in readers for part in reader(index) for row in part]

    order = seen(workers)
    assert order == seen(others)
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_are_shuffled_anew_and_seeds_differ() -> None:
    def order(seed: int, index: int) -> list[int]:
        return ShuffledBatches(Numbers(50), batch_rows=50, seed=seed)(index)[0]

    assert len({tuple(order(seed, index)) for seed in (1, 2) for index in (0, 1, 2)}) == 6
    assert order(1, 2) == order(1, 2)


def test_uneven_share_is_refused() -> None:
    with pytest.raises(DataError, match="shared evenly by 3 workers"):
        ShuffledBatches(Numbers(5), batch_rows=4, seed=0, workers=3)
    with pytest.raises(DataError, match="no rows"):
        ShuffledBatches(Numbers(0), batch_rows=4, seed=0)


@pytest.mark.parametrize("seq_len", [8, 13, 1000])
def test_rows_predict_every_token_once_within_its_document(tmp_path: Path, seq_len: int) -> None:
    documents = random_documents(17)
    rows = TokenRows(TokenStream(write_tokens(tmp_path, documents)), seq_len)
    batch = rows.read(np.arange(len(rows)))
    learnt = batch.targets != IGNORE
    stream = [token for document in documents for token in [*document, EOS]]
    assert batch.targets[learnt].tolist() == stream
    # Position and segment say where in its document each input is; walk through the documents to compare.
    follows = [(number, at) for number, document in enumerate(documents) for at in range(len(document) + 1)]
    previous: dict[tuple[int, int], int] = {}
    for (row, column), (number, at) in zip(learnt.nonzero().tolist(), follows, strict=True):
        given_token = EOS if at == 0 else documents[number][at - 1]
        assert batch.tokens[row, column] == given_token
        assert batch.positions[row, column] == min(at, column)
        segment = int(batch.segments[row, column])
        assert previous.setdefault((row, segment), number) == number


def test_padding_has_no_target(tmp_path: Path) -> None:
    rows = TokenRows(TokenStream(write_tokens(tmp_path, [[5, 6, 7]])), 16)
    batch = rows.read(np.array([0]))
    assert batch.tokens[0, :4].tolist() == [EOS, 5, 6, 7]
    assert batch.targets[0, :4].tolist() == [5, 6, 7, EOS]
    assert torch.all(batch.targets[0, 4:] == IGNORE)


def test_truncated_tokens_are_named(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, [[1, 2, 3]])
    with (folder / "tokens.bin").open("r+b") as file:
        file.truncate(4)
    with pytest.raises(DataError, match="2 tokens found, but"):
        TokenStream(folder)
