"""Single answers that are wanted or not, for KTO, and the reference point that their gains are measured from.

The reference point is an estimate of KL(policy ‖ reference): the mean gain of answers that belong to other prompts,
floored at zero and without a gradient. It is taken over the whole global batch before any of its micro-batches is
learnt from, so that cutting a batch differently changes nothing. A prompt keeps its mismatched answer all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from liuyi.align.answers import (
    Answers,
    answer_logprobs,
    encode_answer,
    held_still,
    pack_answers,
    reference_logprobs,
)
from liuyi.align.pairs import nothing_left
from liuyi.core.errors import DataError, ModelError
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import Batch, Ints, ShuffledBatches
from liuyi.train.packing import Example
from liuyi.train.world import World


@dataclass(frozen=True)
class Label:
    """An answer, whether it is wanted, and an answer to another prompt in its place."""

    id: str
    answer: Example
    desirable: bool
    mismatched: Example


@dataclass(frozen=True)
class Labels:
    """Labelled answers that can be trained on, and those that cannot, with the reason."""

    labels: list[Label] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelBatch:
    """Labelled answers; `desirable` `[answers]` bool, `kl` the global batch's reference point, a scalar."""

    answers: Answers
    mismatched: Answers
    desirable: Tensor
    kl: Tensor

    @property
    def packed(self) -> Batch:
        return self.answers.packed

    def to(self, device: torch.device) -> LabelBatch:
        parts = (self.answers, self.mismatched, self.desirable, self.kl)
        return LabelBatch(*(part.to(device) for part in parts))  # type: ignore[arg-type]


def encode_labels(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, longest: int) -> Labels:
    """Every answer of every row, a pair giving one that is wanted and one that is not.

    Answers that have more than `longest` tokens with their prompt, or that the template does not render as written, are
    left out and named. Raises DataError when none is left, or when all are to one prompt, which leaves nothing to
    mismatch.
    """
    result = Labels()
    kept: list[tuple[Mapping[str, Any], str, Example, bool]] = []
    for row, side in _sides(rows):
        try:
            example = encode_answer(tokenizer, row["prompt"], row[side], row.get("tools"))
        except ModelError as error:
            if not tokenizer.chat_template:
                raise
            result.left_out[row["id"]] = error.message
            continue
        if len(example) > longest:
            result.left_out[row["id"]] = f"{len(example)} tokens, more than {longest}"
        else:
            kept.append((row, row[side], example, side == "chosen"))
    if not kept:
        raise nothing_left(result.left_out)
    texts = [(row, text) for row, text, _, _ in kept]
    for at, (row, _, example, desirable) in enumerate(kept):
        mismatched = _mismatched(at, texts, tokenizer, longest)
        if mismatched is None:
            result.left_out[row["id"]] = "no answer to another prompt fits behind its prompt"
        else:
            result.labels.append(Label(row["id"], example, desirable, mismatched))
    if not result.labels:
        raise DataError("all answers are to one prompt", hint="kto compares answers with those to other prompts")
    return result


def _sides(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    return ((row, side) for row in rows for side in ("chosen", "rejected") if row[side] is not None)


def _mismatched(
    at: int, texts: Sequence[tuple[Mapping[str, Any], str]], tokenizer: Tokenizer, longest: int
) -> Example | None:
    """The next answer to another prompt, behind this one's, that fits; None if none of the next hundred does."""
    row = texts[at][0]
    following = (texts[(at + step) % len(texts)] for step in range(1, len(texts)))
    others = (text for other, text in following if other["prompt"] != row["prompt"])
    for text in islice(others, 100):
        example = encode_answer(tokenizer, row["prompt"], text, row.get("tools"))
        if len(example) <= longest:
            return example
    return None


class LabelRows:
    """Labels by number.

    `reference` `[labels, 2]` has the log-probabilities of each answer and its mismatched one, zeros until taken.
    """

    def __init__(self, labels: Sequence[Label], seq_len: int, pad_id: int) -> None:
        self.labels = labels
        self.seq_len = seq_len
        self.pad_id = pad_id
        self.reference = torch.zeros(len(labels), 2)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Ints) -> LabelBatch:
        """These labels; their reference point is not known yet, and zero."""
        desirable = torch.tensor([self.labels[row].desirable for row in rows])
        return LabelBatch(self._answers(rows), self._mismatched(rows), desirable, torch.zeros(()))

    def take_reference(
        self,
        batches: ShuffledBatches[LabelBatch],
        model: Decoder,
        compute_dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ) -> None:
        """Let log-probabilities under `model` be the reference; `batches` are those of these rows."""
        columns = [
            reference_logprobs(read, batches, model, compute_dtype, world) for read in (self._answers, self._mismatched)
        ]
        self.reference = torch.cat(columns, dim=1)

    def _answers(self, rows: Ints) -> Answers:
        return self._pack([self.labels[row].answer for row in rows], rows, 0)

    def _mismatched(self, rows: Ints) -> Answers:
        return self._pack([self.labels[row].mismatched for row in rows], rows, 1)

    def _pack(self, examples: Sequence[Example], rows: Ints, column: int) -> Answers:
        return pack_answers(examples, self.reference[torch.from_numpy(rows), column], self.seq_len, self.pad_id)


def with_reference_point(
    batches: Callable[[int], Sequence[LabelBatch]],
    model: Decoder,
    compute_dtype: torch.dtype = torch.float32,
    world: World | None = None,
) -> Callable[[int], Sequence[LabelBatch]]:
    """The same batches, each with the global batch's reference point under the model as it is when asked for them."""
    world = world or World()

    def batch(index: int) -> Sequence[LabelBatch]:
        parts = batches(index)
        gain = torch.zeros(())
        with held_still(model):
            for part in parts:
                mismatched = part.mismatched.to(model.device)
                logprobs = answer_logprobs(model, mismatched, compute_dtype).detach()
                gain += (logprobs - mismatched.reference).sum().cpu()
        total, count = world.sum([float(gain), sum(len(part.mismatched) for part in parts)])
        kl = torch.tensor(total / count).clamp(min=0)
        return [replace(part, kl=kl) for part in parts]

    return batch
