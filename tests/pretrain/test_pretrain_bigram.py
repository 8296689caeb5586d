"""The head start: a model that has not trained yet predicts like the bigram table it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder
from liuyi.pretrain.bigram import bigram_embeddings
from liuyi.pretrain.size import config_for_size
from liuyi.pretrain.train import fresh_weights
from liuyi.train.data import TokenStream

VOCAB, EOS = 80, 0


@pytest.fixture(scope="module")
def table() -> NDArray[np.float64]:
    """Rows of next-token probabilities; the last ten tokens never occur."""
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(VOCAB - 10, 0.1), size=VOCAB)
    return np.pad(table, ((0, 0), (0, 10)))


def walk(table: NDArray[np.float64], length: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    cumulative, at, result = table.cumsum(axis=1), EOS, []
    for draw in rng.random(length):
        at = min(int(np.searchsorted(cumulative[at], draw)), VOCAB - 11)
        result.append(at)
    return np.array(result)


def losses(logits: torch.Tensor, tokens: NDArray[np.int64]) -> float:
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[1:])))


def test_the_start_is_near_the_table_and_below_the_frequencies(table: NDArray[np.float64]) -> None:
    train, fresh = walk(table, 60_000, seed=1), walk(table, 20_000, seed=2)
    embedding, head = bigram_embeddings(train, vocab_size=VOCAB, hidden_size=64, eos_id=EOS)
    loss = losses(torch.from_numpy(embedding[fresh[:-1]] @ head.T), fresh)
    truth = losses(torch.from_numpy(np.log(table[fresh[:-1]] + 1e-30)), fresh)
    share = np.log((np.bincount(train, minlength=VOCAB) + 1) / len(train))
    frequencies = losses(torch.from_numpy(np.broadcast_to(share, (len(fresh) - 1, VOCAB)).copy()), fresh)
    assert truth < loss < truth + 0.6 * (frequencies - truth)
    np.testing.assert_allclose(np.mean(embedding**2, axis=1), 1.0, rtol=1e-5)
    few, head_of_few = bigram_embeddings(train, vocab_size=VOCAB, hidden_size=8, eos_id=EOS)
    coarse = losses(torch.from_numpy(few[fresh[:-1]] @ head_of_few.T), fresh)
    assert loss < coarse < frequencies


def test_tokens_never_seen_are_told_apart(table: NDArray[np.float64]) -> None:
    embedding, _ = bigram_embeddings(walk(table, 5000, seed=1), vocab_size=VOCAB, hidden_size=32, eos_id=EOS)
    unseen = embedding[-10:]
    distances = np.linalg.norm(unseen[:, None] - unseen[None], axis=-1)
    assert distances[np.triu_indices(10, 1)].min() > 1.0


def test_the_same_seed_gives_the_same_start(table: NDArray[np.float64]) -> None:
    train = walk(table, 3000, seed=1)
    one, other = (bigram_embeddings(train, vocab_size=VOCAB, hidden_size=16, eos_id=EOS, seed=4) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_decoder_starts_as_the_table(table: NDArray[np.float64], tmp_path: Path) -> None:
    """Through the whole model: whatever came before, the prediction is that of the last token's row."""
    train = walk(table, 5000, seed=1)
    train.astype("<u2").tofile(tmp_path / "tokens.bin")
    about = {"dtype": "uint16", "tokens": len(train), "vocab_size": VOCAB, "eos_id": EOS}
    (tmp_path / "tokens.json").write_text(json.dumps(about))
    stream = TokenStream(tmp_path)
    config = config_for_size(200_000, vocab_size=VOCAB, seq_len=32, eos_id=EOS, pad_id=None)
    model = Decoder(config).eval()
    fresh_weights(model, "bigram", stream, seed=3)
    embedding, head = bigram_embeddings(train, vocab_size=VOCAB, hidden_size=config.hidden_size, eos_id=EOS, seed=3)
    text = walk(table, 30, seed=9)
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(text)[None]))[0]
    torch.testing.assert_close(logits, torch.from_numpy(embedding[text] @ head.T), rtol=1e-3, atol=1e-3)
    tied = Decoder(replace(config, tie_word_embeddings=True))
    with pytest.raises(ModelError, match="tied embeddings cannot hold"):
        fresh_weights(tied, "bigram", stream, seed=3)
