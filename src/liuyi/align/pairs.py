"""Preference pairs as batches: the chosen and the rejected answer of each pair, packed side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liuyi.core.errors import DataError
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.loss import token_logprobs
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import IGNORE, Batch, Ints
from liuyi.train.packing import Example, lay_out, pack


@dataclass(frozen=True)
class Pair:
    """Both answers to one prompt, each with the whole conversation before it."""

    id: str
    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class PairBatch:
    """Packed answers of `count` pairs.

    `sequence` `[rows, seq]` says which answer each target belongs to: `2 p` is the chosen one of pair `p`, `2 p + 1`
    the rejected one, and -1 none. `reference` and `lengths` `[2 count]` are the answers' log-probabilities under the
    reference model and their numbers of tokens.
    """

    packed: Batch
    sequence: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def count(self) -> int:
        return len(self.reference) // 2

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(
            self.packed.to(device), self.sequence.to(device), self.reference.to(device), self.lengths.to(device)
        )


@dataclass(frozen=True)
class Pairs:
    """Pairs that can be trained on, and those that cannot, with the reason."""

    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def read_preferences(path: Path) -> list[dict[str, Any]]:
    """Rows of `preferences.parquet`: id, prompt (messages), chosen, rejected (one is None for a label)."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "prompt", "chosen", "rejected"])
    return [{**row, "prompt": json.loads(row["prompt"])} for row in table.to_pylist()]


def encode_pairs(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, seq_len: int) -> Pairs:
    """Each row as a pair of examples. What is no pair, or one whose answers are equal or too long, is left out.

    Raises DataError when none is left.
    """
    result = Pairs()
    for row in rows:
        if row["chosen"] is None or row["rejected"] is None:
            result.left_out[row["id"]] = "a labelled answer, not a pair"
            continue
        answers = [_encode(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        longest = max(map(len, answers))
        if row["chosen"] == row["rejected"]:
            result.left_out[row["id"]] = "chosen and rejected are equal"
        elif longest > seq_len:
            result.left_out[row["id"]] = f"{longest} tokens, more than {seq_len}"
        else:
            result.pairs.append(Pair(row["id"], *answers))
    if not result.pairs:
        reasons = "; ".join(f"{id}: {reason}" for id, reason in list(result.left_out.items())[:3])
        raise DataError("no preference can be trained on", hint=reasons or "the file has none")
    return result


def _encode(tokenizer: Tokenizer, prompt: Sequence[Mapping[str, Any]], answer: str) -> Example:
    """The answer is learnt, what the assistant said earlier in the prompt is not."""
    ids, said = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    learnt = np.array(said, dtype=np.bool_)
    breaks = np.flatnonzero(~learnt[: int(np.flatnonzero(learnt)[-1])])
    if len(breaks):
        learnt[: breaks[-1] + 1] = False
    return Example(np.array(ids, dtype=np.int64), learnt)


class PairRows:
    """Pairs by number, read as packed batches; `reference` `[pairs, 2]` holds the reference log-probabilities."""

    def __init__(self, pairs: Sequence[Pair], seq_len: int, pad_id: int, reference: Tensor | None = None) -> None:
        self.pairs = pairs
        self.seq_len = seq_len
        self.pad_id = pad_id
        self.reference = torch.zeros(len(pairs), 2) if reference is None else reference

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, rows: Ints) -> PairBatch:
        """These pairs as a batch of as many rows as their answers fill."""
        answers = [answer for row in rows for answer in (self.pairs[row].chosen, self.pairs[row].rejected)]
        packed = pack([len(answer) for answer in answers], self.seq_len)
        batch = lay_out([[answers[number] for number in row] for row in packed], self.seq_len, self.pad_id)
        widest = max(map(len, packed)) + 1
        numbers = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in packed])
        sequence = numbers.gather(1, batch.segments)
        sequence[batch.targets == IGNORE] = -1
        lengths = torch.tensor([int(answer.learnt[1:].sum()) for answer in answers], dtype=torch.float32)
        return PairBatch(batch, sequence, self.reference[torch.from_numpy(rows)].flatten(), lengths)


def answer_logprobs(model: Decoder, batch: PairBatch, compute_dtype: torch.dtype = torch.float32) -> Tensor:
    """Summed log-probability of each answer's tokens, float32 `[2 count]`."""
    packed = batch.packed
    hidden = model(packed.tokens, positions=packed.positions, segments=packed.segments, compute_dtype=compute_dtype)
    learnt = packed.targets != IGNORE
    logprobs = token_logprobs(hidden[learnt], model.head_weight, packed.targets[learnt])
    return torch.zeros_like(batch.reference).index_add(0, batch.sequence[learnt], logprobs)


@torch.no_grad()
def with_reference(
    rows: PairRows, model: Decoder, compute_dtype: torch.dtype = torch.float32, pairs_at_once: int = 64
) -> PairRows:
    """The same pairs with log-probabilities under `model` as their reference."""
    parts = [
        answer_logprobs(model, rows.read(np.arange(at, min(at + pairs_at_once, len(rows)))), compute_dtype).view(-1, 2)
        for at in range(0, len(rows), pairs_at_once)
    ]
    return PairRows(rows.pairs, rows.seq_len, rows.pad_id, torch.cat(parts).cpu())
