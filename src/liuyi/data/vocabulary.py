"""Training a tokenizer on a sample of corpora and chats, and measuring it on texts that it has not seen.

Inputs are read twice, as streams: once for the hashes and sizes of their texts, once for the texts that are sampled.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect, Table
from liuyi.core.errors import DataError
from liuyi.data.attributes import read_groups
from liuyi.data.instructions.tables import CHATS
from liuyi.data.shares import fair_shares
from liuyi.model.tokenizer import Tokenizer, train_bpe

_MOST_CHARS = 20_000
_TESTED_BYTES = 400_000
_HAN_SHARE = 0.1


@dataclass(frozen=True)
class Sizes:
    """The texts of one input, in its order: the first eight bytes of the ids' SHA-256, and the texts' UTF-8 bytes."""

    keys: NDArray[np.uint64]
    bytes: NDArray[np.int64]

    @property
    def trainable(self) -> int:
        """Bytes to train on; the others are kept to test on."""
        total = int(self.bytes.sum())
        return total - min(total // 10, _TESTED_BYTES)


@dataclass(frozen=True)
class Sampled:
    """Texts of one input, as (language, text), in the order of a hash: those to train on, and later ones to test on."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]


@dataclass(frozen=True)
class Measured:
    """How a tokenizer does on texts of one language that it was not trained on."""

    language: str
    bytes: int
    tokens: int
    tokens_beside: tuple[int, ...] = ()
    """By the tokenizers that it is compared with."""

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def all_bytes_per_token(self) -> tuple[float, ...]:
        """The tokenizer's own figure, then those of the others."""
        return tuple(self.bytes / max(1, tokens) for tokens in (self.tokens, *self.tokens_beside))


def train_tokenizer(
    inputs: Sequence[Artifact],
    *,
    vocab_size: int,
    sample_bytes: int,
    beside: Sequence[Tokenizer] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tokenizer, list[Measured]]:
    """A byte-level BPE tokenizer, and how many bytes a token it takes for unseen text by language.

    Each input gives an even share of `sample_bytes`; what one does not fill goes to the others. So a small set of
    conversations weighs as much as a large corpus, and its characters and keys get tokens of their own. The tokenizers
    `beside` it are measured on the same texts, which they may have seen.
    """
    sizes = [_sizes(artifact) for artifact in inputs]
    if not sum(int(each.bytes.sum()) for each in sizes):
        raise DataError("there is no text to train a tokenizer on")
    shares = fair_shares([each.trainable for each in sizes], sample_bytes)
    sampled = [_sample(*each) for each in zip(inputs, sizes, shares, strict=True)]
    on_progress(0, 2)
    tokenizer = train_bpe((text for each in sampled for _, text in each.train), vocab_size)
    on_progress(1, 2)
    measured = _measure(tokenizer, beside, [pair for each in sampled for pair in each.test])
    on_progress(2, 2)
    return tokenizer, measured


def effect(tokenizer: Tokenizer, measured: Sequence[Measured], beside: Mapping[str, Tokenizer]) -> Effect:
    """What the report says of a tokenizer, and of those `beside` it by name."""
    figures = "; ".join(f"{one.bytes_per_token:.2f} in {one.language}" for one in measured)
    said = f"Bytes a token on unseen text: {figures}." if measured else "Too little text to leave any unseen."
    columns = ("language", "bytes", "tokens", "bytes per token", *beside)
    rows: list[tuple[str | float | int, ...]] = [
        (one.language, one.bytes, one.tokens, *(round(figure, 3) for figure in one.all_bytes_per_token))
        for one in measured
    ]
    sizes = "; ".join(f"{name} has {other.vocab_size:,} tokens" for name, other in beside.items())
    return Effect(
        stage="data",
        title="Tokenizer",
        summary=f"Byte-level BPE with {tokenizer.vocab_size:,} tokens. {said}",
        blocks=(Table(title="On unseen text", columns=columns, rows=tuple(rows), note=sizes),),
    )


def _sizes(artifact: Artifact) -> Sizes:
    keys, sizes = array("Q"), array("q")
    for id, _, text in _texts(artifact):
        keys.append(int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]))
        sizes.append(len(text.encode()))
    return Sizes(np.array(keys, np.uint64), np.array(sizes, np.int64))


def _sample(artifact: Artifact, sizes: Sizes, share: int) -> Sampled:
    """Texts in the order of their keys: until `share` bytes are reached those to train on, then those to test on."""
    order = np.argsort(sizes.keys, kind="stable")
    before = np.cumsum(sizes.bytes[order]) - sizes.bytes[order]
    trained = int(np.searchsorted(before, share))
    tested = int(np.searchsorted(before[trained:] - before[trained : trained + 1], _TESTED_BYTES))
    wanted = order[: trained + tested].tolist()
    rows = set(wanted)
    found = {
        row: (language or _language(text), text)
        for row, (_, language, text) in enumerate(_texts(artifact))
        if row in rows
    }
    texts = [found[row] for row in wanted]
    return Sampled(texts[:trained], texts[trained:])


def _texts(artifact: Artifact) -> Iterator[tuple[str, str, str]]:
    """(id, language if it is known, text) of each row of a corpus or of chats."""
    if artifact.kind == "chats":
        yield from _of_chats(artifact.path)
        return
    for table in read_groups(artifact.path, ["id", "text", "lang"]):
        for row in table.to_pylist():
            yield row["id"], row["lang"], row["text"][:_MOST_CHARS]


def _of_chats(folder: Path) -> Iterator[tuple[str, str, str]]:
    for table in read_groups(folder, ["id", "messages"], CHATS):
        for row in table.to_pylist():
            contents = [message.get("content") or "" for message in json.loads(row["messages"])]
            yield row["id"], "", "\n".join(content for content in contents if isinstance(content, str))


def _language(text: str) -> str:
    """`zh` where a good part of the letters are Han, else `en`: enough to tell what a tokenizer does to each."""
    letters = sum(map(str.isalpha, text))
    return "zh" if sum("\u4e00" <= letter <= "\u9fff" for letter in text) > _HAN_SHARE * letters else "en"


def _measure(tokenizer: Tokenizer, beside: Sequence[Tokenizer], pairs: Sequence[tuple[str, str]]) -> list[Measured]:
    by_language: dict[str, list[str]] = {}
    for language, text in pairs:
        by_language.setdefault(language, []).append(text)
    found = []
    for language, texts in by_language.items():
        tokens, *others = (sum(map(len, each.encode_batch(texts))) for each in (tokenizer, *beside))
        found.append(Measured(language, sum(len(text.encode()) for text in texts), tokens, tuple(others)))
    return sorted(found, key=lambda one: -one.bytes)
