"""Reading the `tokens` artifact: one memory-mapped stream of documents, cut into rows.

A document trains as `<eos> t1 … tn` predicting `t1 … tn <eos>`: the `<eos>` that ends one document opens the next,
so every token is predicted exactly once, none across a border, and nothing has to be masked but the padding of the
last row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.train.batches import IGNORE, Batch, Ints, as_batch, starts_to_segments

MIXTURE = "mixture.json"


class Stream(Protocol):
    """Documents one after another, each ended by `eos_id`."""

    eos_id: int
    vocab_size: int
    tokens: NDArray[np.unsignedinteger[Any]]
    phase_starts: Sequence[int]
    """The positions at which the phases of a mixture begin, 0 the first; a stream that was not mixed is one phase."""

    def __len__(self) -> int: ...


class TokenStream:
    """`tokens.bin` of a tokens artifact, memory-mapped, with what `tokens.json` and `mixture.json` say of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        self.eos_id = int(self.about["eos_id"])
        self.vocab_size = int(self.about["vocab_size"])
        dtype = np.dtype(self.about["dtype"]).newbyteorder("<")
        path = folder / "tokens.bin"
        if path.stat().st_size == 0:
            raise DataError("the tokens artifact holds no token", where=str(path))
        self.tokens: NDArray[np.unsignedinteger[Any]] = np.memmap(path, dtype=dtype, mode="r")
        if len(self.tokens) != int(self.about["tokens"]):
            raise DataError(
                f"{len(self.tokens)} tokens found, but tokens.json says {self.about['tokens']}", where=str(path)
            )
        self.phase_starts: Sequence[int] = _phase_starts(folder)

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple[type[TokenStream], tuple[Path]]:
        """Another process maps the same file rather than being sent its content."""
        return TokenStream, (self.folder,)


def _phase_starts(folder: Path) -> list[int]:
    path = folder / MIXTURE
    if not path.exists():
        return [0]
    return [int(phase["start"]) for phase in json.loads(path.read_text(encoding="utf-8"))["phases"]]


class TokenRows:
    """Rows of `seq_len` tokens of a stream; the last one is padded."""

    def __init__(self, stream: Stream, seq_len: int) -> None:
        self.stream = stream
        self.seq_len = seq_len

    def __len__(self) -> int:
        return -(-len(self.stream) // self.seq_len)

    @property
    def phase_starts(self) -> list[int]:
        """The rows at which phases begin; a row belongs to the phase of its first token."""
        starts = {-(-start // self.seq_len) for start in self.stream.phase_starts}
        return sorted(start for start in starts if start < len(self))

    def read(self, rows: Ints) -> Batch:
        """Row `r` predicts the stream's tokens `r * seq_len` up to `(r + 1) * seq_len`."""
        eos, size = self.stream.eos_id, len(self.stream)
        at = rows[:, None] * self.seq_len + np.arange(-1, self.seq_len, dtype=np.int64)[None, :]
        window = np.full(at.shape, eos, dtype=np.int64)
        inside = (at >= 0) & (at < size)
        window[inside] = self.stream.tokens[at[inside]]
        tokens, targets = window[:, :-1], window[:, 1:].copy()
        targets[at[:, 1:] >= size] = IGNORE
        segments, positions = starts_to_segments(tokens == eos)
        return as_batch(tokens, targets, segments, positions)
