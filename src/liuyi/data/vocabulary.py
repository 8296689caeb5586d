"""Training a tokenizer on a sample of corpora and chats, and measuring it on texts that it has not seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect, Table
from liuyi.core.errors import DataError
from liuyi.data.corpus import DOCUMENTS
from liuyi.data.shares import fair_shares
from liuyi.model.tokenizer import Tokenizer, train_bpe

CHATS = "chats.parquet"

_MOST_CHARS = 20_000
_TESTED_BYTES = 400_000
_HAN_SHARE = 0.1


@dataclass(frozen=True)
class Sampled:
    """Texts of one input, as (language, text), in the order of a hash: those to train on, and later ones to test on."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]


@dataclass(frozen=True)
class Measured:
    """How a tokenizer does on texts of one language that it has not seen."""

    language: str
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)


def train_tokenizer(
    inputs: Sequence[Artifact],
    *,
    vocab_size: int,
    sample_bytes: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tokenizer, list[Measured]]:
    """A byte-level BPE tokenizer, and how many bytes a token it takes for unseen text by language.

    Each input gives an even share of `sample_bytes`; what one does not fill goes to the others. So a small set of
    conversations weighs as much as a large corpus, and its characters and keys get tokens of their own.
    """
    texts = [_texts(artifact) for artifact in inputs]
    sizes = [sum(len(text.encode()) for _, text in each) for each in texts]
    if not sum(sizes):
        raise DataError("there is no text to train a tokenizer on")
    trainable = [size - min(size // 10, _TESTED_BYTES) for size in sizes]
    shares = fair_shares(trainable, sample_bytes)
    sampled = [_sample(each, share) for each, share in zip(texts, shares, strict=True)]
    on_progress(0, 2)
    tokenizer = train_bpe((text for each in sampled for _, text in each.train), vocab_size)
    on_progress(1, 2)
    measured = _measure(tokenizer, [pair for each in sampled for pair in each.test])
    on_progress(2, 2)
    return tokenizer, measured


def effect(tokenizer: Tokenizer, measured: Sequence[Measured]) -> Effect:
    """What the report says of a tokenizer."""
    best = "; ".join(f"{one.bytes_per_token:.2f} in {one.language}" for one in measured)
    rows = tuple((one.language, one.bytes, one.tokens, round(one.bytes_per_token, 3)) for one in measured)
    return Effect(
        stage="data",
        title="Tokenizer",
        summary=f"Byte-level BPE with {tokenizer.vocab_size:,} tokens. Bytes a token on unseen text: {best}.",
        blocks=(Table(title="On unseen text", columns=("language", "bytes", "tokens", "bytes per token"), rows=rows),),
    )


def _texts(artifact: Artifact) -> list[tuple[str, str]]:
    """(language, text) pairs of a corpus or of chats, in the order of a hash of their ids."""
    read = _of_chats if artifact.kind == "chats" else _of_corpus
    pairs = sorted(read(artifact.path), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    return [(language, text) for _, language, text in pairs]


def _of_corpus(folder: Path) -> Iterator[tuple[str, str, str]]:
    table = pq.read_table(folder / DOCUMENTS, columns=["id", "text", "lang"])
    for row in table.to_pylist():
        text = row["text"][:_MOST_CHARS]
        yield row["id"], row["lang"] or _language(text), text


def _of_chats(folder: Path) -> Iterator[tuple[str, str, str]]:
    for row in pq.read_table(folder / CHATS, columns=["id", "messages"]).to_pylist():
        contents = [message.get("content") or "" for message in json.loads(row["messages"])]
        text = "\n".join(content for content in contents if isinstance(content, str))
        yield row["id"], _language(text), text


def _language(text: str) -> str:
    """`zh` where a good part of the letters are Han, else `en`: enough to tell what a tokenizer does to each."""
    letters = sum(map(str.isalpha, text))
    return "zh" if sum("\u4e00" <= letter <= "\u9fff" for letter in text) > _HAN_SHARE * letters else "en"


def _sample(pairs: Sequence[tuple[str, str]], share: int) -> Sampled:
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    taken = tested = 0
    for language, text in pairs:
        size = len(text.encode())
        if taken < share:
            train.append((language, text))
            taken += size
        elif tested < _TESTED_BYTES:
            test.append((language, text))
            tested += size
    return Sampled(train, test)


def _measure(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Measured]:
    by_language: dict[str, list[str]] = {}
    for language, text in pairs:
        by_language.setdefault(language, []).append(text)
    found = []
    for language, texts in by_language.items():
        tokens = sum(map(len, tokenizer.encode_batch(texts)))
        found.append(Measured(language, sum(len(text.encode()) for text in texts), tokens))
    return sorted(found, key=lambda one: -one.bytes)
