"""Preference pairs as batches: the chosen and the rejected answer of each pair, packed side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from liuyi.align.answers import Answers, encode_answer, pack_answers, reference_logprobs
from liuyi.core.errors import DataError, ModelError
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import Ints, ShuffledBatches
from liuyi.train.packing import Example
from liuyi.train.world import World

_COLUMNS = ("id", "prompt", "chosen", "rejected", "tools", "margin")


@dataclass(frozen=True)
class Pair:
    """Both answers to one prompt, each with the whole conversation before it."""

    id: str
    chosen: Example
    rejected: Example
    margin: float = 0.0
    """By how much the chosen answer's reward should lead; reward models use it."""


@dataclass(frozen=True)
class Pairs:
    """Pairs that can be trained on, and those that cannot, with the reason."""

    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def read_preferences(path: Path) -> list[dict[str, Any]]:
    """Rows of `preferences.parquet`: id, prompt (messages), tools, chosen, rejected (one is None for a label), and
    margin where there is one."""
    import pyarrow.parquet as pq

    columns = [name for name in pq.read_schema(path).names if name in _COLUMNS]
    table = pq.read_table(path, columns=columns)
    return [
        {**row, "prompt": json.loads(row["prompt"]), "tools": json.loads(row.get("tools") or "[]")}
        for row in table.to_pylist()
    ]


def encode_pairs(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, longest: int) -> Pairs:
    """Each row as a pair of examples.

    What is no pair, one whose answers are equal or have more than `longest` tokens with their prompt, and one that the
    template does not render as written are left out and named. Raises DataError when none is left.
    """
    result = Pairs()
    for row in rows:
        if row["chosen"] is None or row["rejected"] is None:
            result.left_out[row["id"]] = "a labelled answer, not a pair"
            continue
        try:
            chosen, rejected = (
                encode_answer(tokenizer, row["prompt"], row[side], row.get("tools")) for side in ("chosen", "rejected")
            )
        except ModelError as error:
            if not tokenizer.chat_template:
                raise
            result.left_out[row["id"]] = error.message
            continue
        margin = float(row.get("margin") or 0.0)
        length = max(len(chosen), len(rejected))
        if row["chosen"] == row["rejected"]:
            result.left_out[row["id"]] = "chosen and rejected are equal"
        elif length > longest:
            result.left_out[row["id"]] = f"{length} tokens, more than {longest}"
        elif not math.isfinite(margin):
            result.left_out[row["id"]] = f"the margin is {margin}"
        else:
            result.pairs.append(Pair(row["id"], chosen, rejected, margin))
    if not result.pairs:
        raise nothing_left(result.left_out)
    return result


def nothing_left(left_out: Mapping[str, str]) -> DataError:
    """The error where every row was left out, with the first reasons."""
    reasons = "; ".join(f"{id}: {reason}" for id, reason in list(left_out.items())[:3])
    return DataError("no preference can be trained on", hint=reasons or "the file has none")


class PairRows:
    """Pairs by number, read as packed answers: of a batch's pair `p`, `2 p` is the chosen, `2 p + 1` the rejected one.

    `reference` `[pairs, 2]` holds the reference log-probabilities, zeros until taken.
    """

    def __init__(self, pairs: Sequence[Pair], seq_len: int, pad_id: int) -> None:
        self.pairs = pairs
        self.seq_len = seq_len
        self.pad_id = pad_id
        self.reference = torch.zeros(len(pairs), 2)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, rows: Ints) -> Answers:
        """The answers of these pairs."""
        answers = [answer for row in rows for answer in (self.pairs[row].chosen, self.pairs[row].rejected)]
        return pack_answers(answers, self.reference[torch.from_numpy(rows)].flatten(), self.seq_len, self.pad_id)

    def take_reference(
        self,
        batches: ShuffledBatches[Answers],
        model: Decoder,
        compute_dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ) -> None:
        """Let log-probabilities under `model` be the reference; `batches` are those of these rows."""
        self.reference = reference_logprobs(self.read, batches, model, compute_dtype, world)
