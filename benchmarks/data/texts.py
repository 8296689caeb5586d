"""Documents for the benchmarks of data: real texts first, then further ones composed of their paragraphs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from liuyi.data.corpus import Document, document_id, read_documents, write_documents
from liuyi.data.sources.distributions import chosen
from liuyi.data.sources.python_docs import read_distributions

_MOST_TEXT_BYTES = 40_000_000


def texts(corpus: Path | None) -> list[str]:
    """The texts of a corpus, or the documentation of the Python packages that are installed."""
    if corpus:
        return list(read_documents(corpus, ["text"])["text"].to_pylist())
    documents, _ = read_distributions(
        chosen((), ()), max_bytes=_MOST_TEXT_BYTES, max_bytes_per_source=_MOST_TEXT_BYTES // 8
    )
    return [document.text for document in documents]


def write_corpus(folder: Path, real: list[str], size_bytes: int) -> int:
    """Write a corpus of about `size_bytes`; gives its bytes. The same texts and size give the same corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_documents(folder, _documents(real, size_bytes))[1]


def _documents(real: list[str], size_bytes: int) -> Iterator[Document]:
    written = 0
    for number, text in enumerate(_endless(real)):
        if written >= size_bytes:
            return
        written += len(text.encode())
        place = f"{number % 97}/{number}"
        yield Document(document_id("bench", place, text), text, f"source{number % 11}", place, "MIT", cluster=place[:2])


def _endless(real: list[str]) -> Iterator[str]:
    """The texts in an order of chance; then texts of as many paragraphs, each drawn from all there are."""
    chance = random.Random(1)
    real = sorted(real)
    chance.shuffle(real)
    yield from real
    paragraphs = [part for text in real for part in text.split("\n\n")]
    lengths = [text.count("\n\n") + 1 for text in real]
    while True:
        yield "\n\n".join(chance.choices(paragraphs, k=chance.choice(lengths)))
