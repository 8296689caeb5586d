"""Answers to prompts as batches: packed side by side, each with its own log-probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from liuyi.core.errors import ModelError
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.loss import token_logprobs
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import IGNORE, Batch, Ints, ShuffledBatches
from liuyi.train.packing import Example, lay_out, pack
from liuyi.train.world import World


@dataclass(frozen=True)
class Answers:
    """Packed answers, each with the whole conversation before it.

    `sequence` `[rows, seq]` says which answer each target belongs to, -1 for none. Of every answer, `[answers]`:
    `reference` is its log-probability under the reference model, `lengths` its number of tokens, and `ends` the place
    of its last token in the flattened batch.
    """

    packed: Batch
    sequence: Tensor
    reference: Tensor
    lengths: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.reference)

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def encode_answer(
    tokenizer: Tokenizer,
    prompt: Sequence[Mapping[str, Any]],
    answer: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Example:
    """The answer is learnt, what the assistant said earlier in the prompt is not. `tools` are those it might call.

    Raises ModelError where the template does not render the conversation as written, and for an answer without tokens.
    """
    ids, said = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": answer}], tools=tools)
    learnt = np.array(said, dtype=np.bool_)
    if not learnt[1:].any():
        raise ModelError("the answer is empty", hint="the chat template has no token that ends it either")
    breaks = np.flatnonzero(~learnt[: int(np.flatnonzero(learnt)[-1])])
    if len(breaks):
        learnt[: breaks[-1] + 1] = False
    return Example(np.array(ids, dtype=np.int64), learnt)


ROW_STEP = 32
"""Rows of answers are a multiple of so many tokens long."""


def pack_answers(answers: Sequence[Example], reference: Tensor, seq_len: int, pad_id: int) -> Answers:
    """A batch of as few rows as hold the answers, no longer than they need be for that and than `seq_len`."""
    packed, seq_len = _pack_tightly([len(answer) for answer in answers], seq_len)
    batch = lay_out([[answers[number] for number in row] for row in packed], seq_len, pad_id)
    widest = max(map(len, packed)) + 1
    numbers = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in packed])
    sequence = numbers.gather(1, batch.segments)
    sequence[batch.targets == IGNORE] = -1
    ends = torch.zeros(len(answers), dtype=torch.int64)
    for at, row in enumerate(packed):
        ends[row] = at * seq_len - 1 + torch.tensor([len(answers[number]) for number in row]).cumsum(0)
    lengths = torch.tensor([int(answer.learnt[1:].sum()) for answer in answers], dtype=torch.float32)
    return Answers(batch, sequence, reference, lengths, ends)


def _pack_tightly(lengths: Sequence[int], longest: int) -> tuple[list[list[int]], int]:
    """The fewest rows that `pack` finds, in rows that are about as short as they can be for it, and their length."""
    packed = pack(lengths, longest)
    low, high = max(*lengths, -(-sum(lengths) // len(packed))) - 1, longest
    while high - low > ROW_STEP:
        middle = (low + high) // 2
        shorter = pack(lengths, middle)
        if len(shorter) > len(packed):
            low = middle
        else:
            packed, high = shorter, middle
    return packed, min(longest, -(-high // ROW_STEP) * ROW_STEP)


def answer_logprobs(model: Decoder, answers: Answers, compute_dtype: torch.dtype = torch.float32) -> Tensor:
    """Summed log-probability of each answer's tokens, float32 `[answers]`."""
    packed = answers.packed
    hidden = model(packed.tokens, positions=packed.positions, segments=packed.segments, compute_dtype=compute_dtype)
    learnt = packed.targets != IGNORE
    logprobs = token_logprobs(hidden[learnt], model.head_weight, packed.targets[learnt])
    return torch.zeros_like(answers.reference).index_add(0, answers.sequence[learnt], logprobs)


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """No weight is trained meanwhile: no gradients are kept, though all is computed as in training, by the kernels that
    are there only where gradients are."""
    # A parameter that is cut up goes on asking for gradients: FSDP looks but once whether it is trained.
    trained = [each for each in model.parameters() if each.requires_grad and not isinstance(each, DTensor)]
    mode = model.training
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(mode)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def reference_logprobs(
    read: Callable[[Ints], Answers],
    batches: ShuffledBatches[Any],
    model: Decoder,
    compute_dtype: torch.dtype = torch.float32,
    world: World | None = None,
) -> Tensor:
    """Log-probabilities of the answers that `read` gives for a row of `batches`, float32 `[rows, answers]` on the CPU.

    `model` is the policy before its first step, laid out as it is trained. Answers are packed as the first epoch packs
    them, since rounding depends on the company: the first step of an adapter finds the same numbers to the bit. They
    are a function of the seed, so a run that goes on computes them again rather than keep them. Processes that share
    the batches share the work.
    """
    world = world or World()
    met, scored = [], []
    with held_still(model):
        for numbers, fresh in batches.first_epoch():
            # What is met again is scored too: processes that hold one model together go through it equally often.
            logprobs = answer_logprobs(model, read(numbers).to(model.device), compute_dtype).detach().cpu()
            met.append(torch.from_numpy(numbers[:fresh]))
            scored.append(logprobs.view(len(numbers), -1)[:fresh])
    values = torch.cat(scored)
    found = torch.zeros(len(batches.rows), values.shape[1]).index_copy(0, torch.cat(met), values)
    return torch.tensor(world.sum(found.flatten().tolist())).view_as(found)
