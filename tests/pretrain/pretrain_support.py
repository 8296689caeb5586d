"""Small texts, a tokenizer for them, and their tokens, for tests of pretraining."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from liuyi.core.artifact import Artifact
from liuyi.core.home import Home
from liuyi.model.tokenizer import Tokenizer, train_bpe

WORDS = "the a file opens reads writes closes path error returns value list of in with buffer lock"
GARDEN = "a rose grows in wet soil under the old wall and bees come for pollen each warm morning"


def sentences(count: int, seed: int, words: str = WORDS) -> list[str]:
    """Texts in which each word is likely followed by the next one of `words`."""
    rng = np.random.default_rng(seed)
    known = words.split()
    texts = []
    for _ in range(count):
        size = int(rng.integers(8, 50))
        steps = np.where(rng.random(size) < 0.7, 1, rng.integers(1, len(known), size))
        texts.append(" ".join(known[at] for at in np.cumsum(steps) % len(known)) + ".")
    return texts


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The same texts with their words in no order."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation(text.split())) for text in texts]


def small_tokenizer(home: Home, vocab_size: int = 300) -> tuple[Tokenizer, Artifact]:
    """A tokenizer of all the words above."""
    built = train_bpe([*sentences(100, 1), *sentences(100, 2, GARDEN)], vocab_size)
    staging = home.store.stage("tokenizer")
    built.save(staging.path)
    return built, home.store.publish(staging)


def tokens_of(home: Home, tokenizer: Tokenizer, texts: Sequence[str], name: str, *, clusters: int = 8) -> Artifact:
    """A tokens artifact; ids are `name` and a number, clusters are `clusters` in turn."""
    encoded = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    sizes = [len(ids) for ids in encoded]
    staging = home.store.stage("tokens")
    np.concatenate(encoded).astype("<u2").tofile(staging.path / "tokens.bin")
    table = {
        "id": [f"{name}{number}" for number in range(len(texts))],
        "offset": pa.array(np.cumsum([0, *sizes[:-1]]), pa.int64()),
        "tokens": pa.array(sizes, pa.int64()),
        "bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
        "cluster": [f"{name}-cluster{number % clusters}" for number in range(len(texts))],
        "source": [name] * len(texts),
        "license": ["CC0-1.0"] * len(texts),
        "url": [""] * len(texts),
    }
    pq.write_table(pa.table(table), staging.path / "documents.parquet")
    about = {
        "dtype": "uint16",
        "tokens": sum(sizes),
        "documents": len(sizes),
        "bytes": sum(len(text.encode()) for text in texts),
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
    }
    (staging.path / "tokens.json").write_text(json.dumps(about))
    return home.store.publish(staging)


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "seq_len": 32,
    "batch_tokens": 256,
    "init": "random",
    "compute_dtype": "fp32",
}
"""A decoder of some ten thousand parameters."""
