"""Tokens: documents as one memory-mapped stream, and from any position of it back to the document.

`tokens.bin` holds the token ids of all documents one after another, each document ended by `<eos>`, little-endian,
uint16 where the vocabulary allows it. `documents.parquet` says where each begins; `tokens.json` counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from liuyi.core.errors import ArtifactError, DataError
from liuyi.data.corpus import DOCUMENTS, read_documents, write_table
from liuyi.model.tokenizer import Tokenizer

TOKENS = "tokens.bin"
ABOUT = "tokens.json"

_BYTES_PER_BATCH = 2_000_000
_FULL = 0.99
"""A budget filled to this part is full: what is left is smaller than most documents."""


@dataclass(frozen=True)
class About:
    """What `tokens.json` says."""

    dtype: str
    tokens: int
    """The `<eos>` after each document among them."""
    documents: int
    bytes: int
    """UTF-8 bytes of the documents."""
    vocab_size: int
    eos_id: int


@dataclass(frozen=True)
class Place:
    """Where a token stands."""

    document: str
    """The document's id."""
    cluster: str
    offset: int
    """Its number within the document, from 0; the last is `<eos>`."""
    tokens: int
    """Tokens of the document, `<eos>` included."""


def write_tokens(
    folder: Path,
    corpus: Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> About:
    """Encode a corpus on all cores, in an order shuffled by a hash of the documents' ids.

    With `max_tokens`, documents are taken in that order while they fit, so a budget holds a sample of everything.
    Special tokens in the text are encoded as the plain text that they are. `on_progress` hears (bytes done, in all).
    Raises DataError where nothing is left to write or the tokenizer has no end-of-document token.
    """
    if tokenizer.eos_id is None:
        raise DataError(
            "the tokenizer has no end-of-document token", hint="its tokenizer_config.json names no eos_token"
        )
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    tokenizer.backend.encode_special_tokens = True
    documents = _shuffled(read_documents(corpus))
    sizes = pc.binary_length(documents["text"]).to_numpy().astype(np.int64)
    budget = float("inf") if max_tokens is None else max_tokens
    taken, counts, total, done = [], [], 0, 0
    with (folder / TOKENS).open("wb") as file:
        for rows in _batches(sizes):
            for row, ids in zip(rows, tokenizer.encode_batch(documents["text"].take(rows).to_pylist()), strict=True):
                if total + len(ids) + 1 <= budget:
                    file.write(np.array([*ids, tokenizer.eos_id], dtype).tobytes())
                    taken.append(row)
                    counts.append(len(ids) + 1)
                    total += len(ids) + 1
            done += int(sizes[rows].sum())
            on_progress(done, int(sizes.sum()))
            if total >= _FULL * budget:
                break
    if not taken:
        raise DataError("no document fits", hint=f"max_tokens is {max_tokens}" if len(sizes) else "the corpus is empty")
    _write_places(folder, documents.take(taken), np.array(counts), sizes[taken])
    about = About(
        dtype=dtype.name,
        tokens=total,
        documents=len(taken),
        bytes=int(sizes[taken].sum()),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
    )
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
    return about


class Tokens:
    """A tokens artifact, memory-mapped.

    Raises ArtifactError where its files do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.about = About(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        self.ids: NDArray[Any] = np.memmap(folder / TOKENS, np.dtype(self.about.dtype).newbyteorder("<"), mode="r")
        self._folder = folder
        if len(self.ids) != self.about.tokens:
            raise ArtifactError(
                f"{TOKENS} holds {len(self.ids)} tokens, {ABOUT} says {self.about.tokens}", where=str(folder)
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def documents(self) -> pa.Table:
        """One row a document in the order of the stream: id, offset, tokens, bytes, cluster, source, license."""
        return pq.read_table(self._folder / DOCUMENTS)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[documents] the position of each document's first token."""
        return self.documents["offset"].to_numpy()  # type: ignore[no-any-return]

    def locate(self, position: int) -> Place:
        """The document that the token at `position` belongs to.

        Raises IndexError outside the stream.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside the {len(self)} tokens")
        row = int(np.searchsorted(self.offsets, position, side="right")) - 1
        found = self.documents.slice(row, 1).to_pylist()[0]
        return Place(found["id"], found["cluster"], position - found["offset"], found["tokens"])


def _shuffled(documents: pa.Table) -> pa.Table:
    keys = [hashlib.sha256(id.encode()).digest() for id in documents["id"].to_pylist()]
    return documents.take(sorted(range(len(keys)), key=keys.__getitem__))


def _batches(sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    rows: list[int] = []
    held = 0
    for row, size in enumerate(sizes.tolist()):
        rows.append(row)
        held += size
        if held >= _BYTES_PER_BATCH:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def _write_places(folder: Path, documents: pa.Table, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    table = pa.table(
        {
            "id": documents["id"],
            "offset": pa.array(np.cumsum(counts) - counts, pa.int64()),
            "tokens": pa.array(counts, pa.int64()),
            "bytes": pa.array(sizes, pa.int64()),
            **{name: documents[name] for name in ("cluster", "source", "license")},
        }
    )
    write_table(table, folder / DOCUMENTS)
