"""Small things to train on, and who listens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.train.batches import IGNORE, Batch, as_batch, starts_to_segments

VOCAB, EOS = 64, 0


@dataclass
class Listener:
    """An observer that remembers."""

    logs: list[str] = field(default_factory=list)
    metrics: list[tuple[str, float, int | None]] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        pass

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        self.metrics.append((name, value, index))

    def log(self, message: str) -> None:
        self.logs.append(message)


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class KilledAt(Listener):
    """Dies when it is told of progress for the `n`th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def tiny_model(seed: int = 1, vocab_size: int = VOCAB, hidden_size: int = 16) -> Decoder:
    """A decoder of a few thousand parameters."""
    config = DecoderConfig(
        family="qwen3",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        qk_norm=True,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = Decoder(config)
    init_weights(model, seed)
    return model


def write_tokens(folder: Path, documents: Sequence[Sequence[int]], vocab_size: int = VOCAB) -> Path:
    """A tokens artifact of these documents, the `<eos>` after each added here."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    sizes = [len(document) + 1 for document in documents]
    stream = [token for document in documents for token in [*document, EOS]]
    np.array(stream, dtype="<u2").tofile(folder / "tokens.bin")
    columns = {
        "id": [f"d{number}" for number in range(len(documents))],
        "offset": np.cumsum([0, *sizes[:-1]]).tolist(),
        "tokens": sizes,
        "bytes": [4 * size for size in sizes],
        "cluster": [f"c{number % 3}" for number in range(len(documents))],
    }
    pq.write_table(pa.table(columns), folder / "documents.parquet")
    about = {
        "dtype": "uint16",
        "tokens": len(stream),
        "documents": len(documents),
        "bytes": 4 * len(stream),
        "vocab_size": vocab_size,
        "eos_id": EOS,
    }
    (folder / "tokens.json").write_text(json.dumps(about))
    return folder


def random_documents(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Documents with a pattern to learn: each token is likely the one before it plus one."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        size = int(rng.integers(1, longest))
        steps = np.where(rng.random(size) < 0.8, 1, rng.integers(1, VOCAB - 1, size))
        documents.append((1 + np.cumsum(steps) % (VOCAB - 1)).tolist())
    return documents


def packed_batch(rows: int, seq: int, seed: int = 0, vocab_size: int = VOCAB) -> Batch:
    """Rows of random tokens, each cut into a few documents; the last token of each has nothing to predict."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (rows, seq))
    starts = rng.random((rows, seq)) < 4 / seq
    segments, positions = starts_to_segments(starts)
    targets = np.full_like(tokens, IGNORE)
    within = segments[:, 1:] == segments[:, :-1]
    targets[:, :-1][within] = tokens[:, 1:][within]
    return as_batch(tokens, targets, segments, positions)
