"""Documents as vectors that lie close together where the documents say the same.

Either by a table of word-piece vectors that comes inside the package `wordllama` (English; Miller 2024,
github.com/dleemiller/WordLlama), of which a text's vector is the mean, or by a model: the mean of its final hidden
states. Both read a document from its beginning up to a number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError, ModelError

if TYPE_CHECKING:
    import pyarrow as pa

Vectors = NDArray[np.float32]
"""[documents, dimensions]"""

_TABLE = "weights/l2_supercat_256.safetensors"
_PIECES = "tokenizers/l2_supercat_tokenizer_config.json"
_CHARS_PER_TOKEN = 16
"""A text is cut to so many characters for each token wanted before it is split, as few tokens are longer."""


class Encoder(Protocol):
    """What gives vectors of texts."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[texts, dimensions]; zeros for a text without tokens."""


@cache
def open_encoder(model: Path | None, max_tokens: int) -> Encoder:
    """The encoder of a model's folder, or the table of word pieces; opened once in a process.

    Raises DataError where the table is wanted and not installed.
    """
    return _WordPieces(max_tokens) if model is None else _Model(model, max_tokens)


def encode_group(model: Path | None, max_tokens: int, group: pa.Table) -> pa.Table:
    """For each document of a row group its vector, as bytes of float32."""
    import pyarrow as pa

    vectors = open_encoder(model, max_tokens).encode([text or "" for text in group["text"].to_pylist()])
    return pa.table({"vector": pa.array([row.tobytes() for row in vectors], pa.binary())})


class _WordPieces:
    def __init__(self, max_tokens: int) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        # Found, not imported: importing it changes the logging of the whole process.
        spec = find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise DataError(
                "no model was given, and the table of word pieces is not installed",
                hint="pip install 'liuyi[semantic]', or give a checkpoint as 'model'",
            )
        folder = Path(spec.origin).parent
        (self._table,) = load_file(folder / _TABLE).values()
        self._pieces = Tokenizer.from_file(str(folder / _PIECES))
        self._pieces.no_padding()
        self._pieces.enable_truncation(max_tokens)
        self._longest = max_tokens * _CHARS_PER_TOKEN

    def encode(self, texts: Sequence[str]) -> Vectors:
        found = self._pieces.encode_batch([text[: self._longest] for text in texts], add_special_tokens=False)
        vectors = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for vector, pieces in zip(vectors, found, strict=True):
            if pieces.ids:
                vector[:] = self._table[pieces.ids].mean(axis=0, dtype=np.float32)
        return vectors


class _Model:
    def __init__(self, folder: Path, max_tokens: int) -> None:
        from liuyi.infer.open import open_runner
        from liuyi.model.load import load

        decoder, self._tokenizer = load(folder)
        if decoder.config.vocab_size < self._tokenizer.vocab_size:
            raise ModelError("the model has fewer tokens than its tokenizer", where=str(folder))
        self._most = min(max_tokens, decoder.config.context_tokens)
        self._runner = open_runner(decoder, weights="fp32", kv_tokens=self._most)

    def encode(self, texts: Sequence[str]) -> Vectors:
        from liuyi.infer.blocks import BlockPool
        from liuyi.infer.embed import Embedder

        self._tokenizer.backend.encode_special_tokens = True  # what looks like one is text like any other
        longest = self._most * _CHARS_PER_TOKEN
        split = [ids[: self._most] for ids in self._tokenizer.encode_batch([text[:longest] for text in texts])]
        embedder = Embedder(self._runner, BlockPool(self._runner.blocks))
        vectors = np.zeros((len(texts), self._runner.config.hidden_size), np.float32)
        for number, ids in enumerate(split):
            if ids:
                embedder.add(number, [ids])
        while embedder.has_work:
            for number, (vector,) in embedder.step():
                vectors[number] = vector
        return vectors
