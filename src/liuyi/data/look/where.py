"""From tokens back to documents: what stands at a position of a stream, and what the batch of a training step held.

A batch is a pure function of the seed and its index (`train/batches.py`), and the training log says which batch each
step took, also where a rollback passed over some. So nothing has to be recorded of what went by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liuyi.core.errors import DataError
from liuyi.data.tokens import Tokens
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.log import LOG_FILE

TRAINING_FACTS = "liuyi.json"


@dataclass(frozen=True)
class Surroundings:
    """A token, and the text of its document before and after it."""

    before: str
    token: str
    after: str


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one document."""

    position: int
    """Of its first token, in the stream."""
    offset: int
    """The same, counted from the document's first token."""
    tokens: int
    document: dict[str, Any]
    """The document's row in `documents.parquet`: id, tokens and bytes in all, cluster, source, license, url."""


@dataclass(frozen=True)
class Row:
    """A row of a batch: its place there, its number among all rows, and the documents that it holds."""

    place: int
    number: int
    pieces: tuple[Piece, ...]


def surroundings(tokens: Tokens, tokenizer: Tokenizer, position: int, *, reach: int = 40) -> Surroundings:
    """The token at `position` and up to `reach` tokens on either side of it, within its document.

    A character that is cut by the token's ends, as a byte-level BPE cuts Chinese, is shown whole as the token.
    Raises DataError outside the stream.
    """
    (piece,) = pieces(tokens, position, position + 1)
    first = position - min(reach, piece.offset)
    last = min(position + reach + 1, position - piece.offset + piece.document["tokens"])
    parts = [tokenizer.token_bytes(id) for id in tokens.ids[first:last].tolist()]
    data = b"".join(parts)
    start = sum(map(len, parts[: position - first]))
    end = start + len(parts[position - first])
    while start > 0 and _is_inside(data, start):
        start -= 1
    while _is_inside(data, end):
        end += 1
    before, token, after = (part.decode(errors="ignore") for part in (data[:start], data[start:end], data[end:]))
    return Surroundings(before, token, after)


def _is_inside(data: bytes, place: int) -> bool:
    """Whether a cut at `place` would fall within a character."""
    return place < len(data) and data[place] & 0xC0 == 0x80


def pieces(tokens: Tokens, start: int, end: int) -> list[Piece]:
    """The documents that the tokens from `start` up to `end` belong to, in order.

    Raises DataError outside the stream.
    """
    if not 0 <= start < end <= len(tokens):
        raise DataError(
            f"position {start if start < 0 or start >= len(tokens) else end - 1} is outside the stream",
            hint=f"it has {len(tokens):,} tokens, from 0 to {len(tokens) - 1}",
        )
    first, last = np.searchsorted(tokens.offsets, [start, end - 1], side="right") - 1
    found = []
    for document in tokens.documents.slice(first, last - first + 1).to_pylist():
        offset = document.pop("offset")
        begins, ends = max(start, offset), min(end, offset + document["tokens"])
        found.append(Piece(begins, begins - offset, ends - begins, document))
    return found


def batch_of_step(checkpoint: Path, step: int) -> int:
    """The index of the batch that a training step took last, as the training log says.

    Raises DataError where there is no such log, or no such step in it.
    """
    path = checkpoint / LOG_FILE
    if not path.exists():
        raise DataError(f"the checkpoint has no {LOG_FILE}", hint="was it trained here?")
    taken = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        taken[row["step"]] = row["batch"]
    if step not in taken:
        known = f"its steps go from {min(taken)} to {max(taken)}" if taken else f"its {LOG_FILE} is empty"
        raise DataError(f"the training has no step {step}", hint=known)
    return int(taken[step])


def rows_of_batch(tokens_folder: Path, checkpoint: Path, index: int) -> list[Row]:
    """The rows of batch `index` of the pretraining that gave a checkpoint, with what each predicts.

    Raises DataError where the checkpoint does not say how its batches were made.
    """
    from liuyi.train.batches import ShuffledBatches
    from liuyi.train.data import TokenRows, TokenStream

    path = checkpoint / TRAINING_FACTS
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in ("seq_len", "batch_rows", "seed") if name not in facts]
    if missing:
        raise DataError(f"the checkpoint does not say {' and '.join(missing)}", hint="is it one of pretrain.train?")
    rows = TokenRows(TokenStream(tokens_folder), facts["seq_len"])
    batches = ShuffledBatches(rows, batch_rows=facts["batch_rows"], seed=facts["seed"], phase_starts=rows.phase_starts)
    tokens = Tokens(tokens_folder)
    numbers = batches.row_numbers(index).tolist()
    return [_row(tokens, place, number, facts["seq_len"]) for place, number in enumerate(numbers)]


def sources(rows: Sequence[Row]) -> list[tuple[str, str, int, int]]:
    """(source, licence, documents, tokens) of what rows hold, the most tokens first."""
    documents: dict[tuple[str, str], set[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for piece in (piece for row in rows for piece in row.pieces):
        key = piece.document["source"], piece.document["license"]
        documents.setdefault(key, set()).add(piece.document["id"])
        counts[key] = counts.get(key, 0) + piece.tokens
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return [(*key, len(documents[key]), counts[key]) for key in ranked]


def _row(tokens: Tokens, place: int, number: int, seq_len: int) -> Row:
    start = number * seq_len
    return Row(place, number, tuple(pieces(tokens, start, min(start + seq_len, len(tokens)))))
