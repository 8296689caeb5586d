"""Tokens: documents as one memory-mapped stream, and from any position of it back to the document.

`tokens.bin` holds the token ids of all documents one after another, each document ended by `<eos>`, little-endian,
uint16 where the vocabulary allows it. `documents.parquet` says where each begins; `tokens.json` counts.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Encoding

from liuyi.core.errors import ArtifactError, DataError
from liuyi.data.corpus import DOCUMENTS, Rows
from liuyi.data.shuffle import BUCKET_BYTES, Shuffled
from liuyi.model.tokenizer import Tokenizer

TOKENS = "tokens.bin"
ABOUT = "tokens.json"

_BYTES_PER_BATCH = 2_000_000
_FULL = 0.99
"""A budget filled to this part is full: what is left is smaller than most documents."""
_ORIGIN = ("cluster", "source", "license", "url")


def places_schema() -> pa.Schema:
    """The columns of `documents.parquet`: one row a document in the order of the stream."""
    counts = [(name, pa.int64()) for name in ("offset", "tokens", "bytes")]
    return pa.schema([("id", pa.string()), *counts, *((name, pa.string()) for name in _ORIGIN)])


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
    bucket_bytes: int = BUCKET_BYTES,
) -> About:
    """Encode a corpus on all cores, in an order shuffled by a hash of the documents' ids.

    With `max_tokens`, documents are taken in that order while they fit, so a budget holds a sample of everything.
    Special tokens in the text are encoded as the plain text that they are. `on_progress` hears (bytes done, in all).
    Memory holds a few times `bucket_bytes`, however large the corpus; the result does not depend on it.
    Raises DataError where nothing is left to write or the tokenizer has no end-of-document token.
    """
    if tokenizer.eos_id is None:
        raise DataError(
            "the tokenizer has no end-of-document token", hint="its tokenizer_config.json names no eos_token"
        )
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    budget = float("inf") if max_tokens is None else max_tokens
    done = total = size = 0
    with (
        TemporaryDirectory(prefix=".shuffle-", dir=folder) as scratch,
        (folder / TOKENS).open("wb") as file,
        Rows(folder / DOCUMENTS, places_schema()) as places,
    ):
        shuffled = Shuffled(corpus, ("id", "text", *_ORIGIN), Path(scratch), bucket_bytes=bucket_bytes)
        for batch, encoded in _encoded(tokenizer, shuffled):
            lengths = pc.binary_length(batch["text"]).to_pylist()
            origins = batch.drop_columns(["text"]).to_pylist()
            for origin, length, encoding in zip(origins, lengths, encoded, strict=True):
                ids = [*encoding.ids, tokenizer.eos_id]
                if total + len(ids) <= budget:
                    file.write(np.array(ids, dtype).tobytes())
                    places.add({**origin, "offset": total, "tokens": len(ids), "bytes": length})
                    total += len(ids)
                    size += length
            done += sum(lengths)
            on_progress(done, shuffled.bytes)
            if total >= _FULL * budget:
                break
    if not places.count:
        raise DataError("no document fits", hint=f"max_tokens is {max_tokens}" if done else "the corpus is empty")
    about = About(
        dtype=dtype.name,
        tokens=total,
        documents=places.count,
        bytes=size,
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
        """One row a document in the order of the stream: id, offset, tokens, bytes, cluster, source, license, url."""
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


def _encoded(tokenizer: Tokenizer, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, list[Encoding]]]:
    """Batches of documents with what they are encoded as.

    The next batch is encoded on all cores while this one is written: giving ids to Python is work for one core.
    """
    tokenizer.backend.encode_special_tokens = True

    def encode(batch: pa.Table) -> list[Encoding]:
        encoded: list[Encoding] = tokenizer.backend.encode_batch_fast(
            batch["text"].to_pylist(), add_special_tokens=False
        )
        return encoded

    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[pa.Table, Future[list[Encoding]]]] = deque()
        try:
            for batch in _batches(tables):
                waiting.append((batch, pool.submit(encode, batch)))
                if len(waiting) > 1:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables in parts of about `_BYTES_PER_BATCH`: enough documents for every core."""
    for table in tables:
        ends = np.cumsum(pc.binary_length(table["text"]).to_numpy())
        start = 0
        while start < table.num_rows:
            before = ends[start - 1] if start else 0
            end = int(np.searchsorted(ends, before + _BYTES_PER_BATCH)) + 1
            yield table.slice(start, end - start)
            start = end
