"""What the engine asks of a model: new tokens of many sequences in, logits out, over keys and values kept in blocks.

    batch = Batch(
        tokens=ids([7, 8, 9, 40]),       # three tokens of one prompt, then one of a sequence that generates
        counts=ids([3, 1]),
        lengths=ids([0, 57]),            # the second one has 57 tokens in its blocks already
        tables=ids([[4, -1], [2, 9]]),   # blocks of 32 tokens that hold, or will hold, each sequence
        rows=ids([2, 3]),                # logits after the last token of each
        adapters=ids([-1, -1]),
    )
    logits = runner.logits(batch)        # [2, vocab]

A sequence is a list of blocks, in any order and shared with others that begin with the same tokens (PagedAttention,
arXiv 2309.06180). A runner keeps no state of sequences: the engine decides which block holds what.

The last sequence of a batch may go through some of the layers only, and through the next ones in later batches, beside
others that go through all (layered prefill, arXiv 2510.08055):

    residual = np.empty((64, hidden), np.float32)
    batch = Batch(..., layers=Layers(0, 10, residual))      # then Layers(10, 20, residual), Layers(20, 30, residual)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from liuyi.model.config import DecoderConfig

BLOCK_TOKENS = 32
"""Tokens of a block."""

Ids = NDArray[np.int32]
"""C-contiguous int32: what goes to native code as it is."""
Floats = NDArray[np.float32]


def ids(values: ArrayLike) -> Ids:
    """An array of a batch."""
    return np.ascontiguousarray(values, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Layers:
    """Through which layers tokens go, from `begin` on and before `end`."""

    begin: int
    end: int
    residual: Floats
    """Their residual stream, [tokens, hidden], C-contiguous: the runner leaves it there after `end`, if that is not the
    last layer, and finds it there before `begin`, if that is not the first."""


@dataclass(frozen=True, slots=True)
class Batch:
    """New tokens of several sequences, packed one after the other. All arrays are C-contiguous int32."""

    tokens: Ids
    """Ids of the new tokens of all sequences, [n]."""
    counts: Ids
    """New tokens of each sequence, at least 1, [sequences]; they add up to n."""
    lengths: Ids
    """Tokens that each sequence has in its blocks already, [sequences]; its first new token has this position."""
    tables: Ids
    """The blocks of each sequence in order, [sequences, most blocks], −1 beyond its end; they have room for
    `lengths + counts` tokens. Blocks with new tokens belong to one sequence of the batch only."""
    rows: Ids
    """Which of the n tokens results are wanted for, rising, [rows]; may be empty."""
    adapters: Ids
    """The adapter slot of each sequence, −1 for none, [sequences]."""
    layers: Layers | None = None
    """What the last sequence goes through, None for all layers. Blocks that it does not share with others hold its keys
    and values of these layers then; `rows` names none of its tokens before the last layer."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How a token is chosen for each row of a batch."""

    temperatures: Floats
    """[rows], 0 for the likeliest token."""
    keys: NDArray[np.uint64]
    """Of the noise, [rows]: see `sampling.draw`."""


class Runner(Protocol):
    """A model with room for `blocks` blocks of keys and values."""

    config: DecoderConfig
    blocks: int
    """Blocks that there are; tables name them 0 … blocks − 1."""
    block_bytes: int
    """Memory that one block takes, over all layers."""
    weight_bytes: int
    """Bytes of weights that are read from memory for each token."""
    format: str
    """Number format of the matrix products: `fp32`, `bf16`, `int8`, `int4`."""
    device: str
    """Where it computes: `cpu`, `cuda:0`."""
    stops: int
    """Layers after each of which the last sequence of a batch may stop; 1 if `Batch.layers` must be None."""
    name: str
    """How it computes, for records and reports: `torch fp32`, `native int8, kv bf16`."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits [rows, vocab] float32 on the CPU, after the tokens `batch.rows`.

        Writes keys and values of all new tokens into their blocks.
        """

    def choose(self, batch: Batch, draws: Draws | None = None) -> Ids:
        """As `logits`, but of each row a token: the first with the largest, or one that is drawn, [rows].

        Without `draws` all are the likeliest.
        """

    def hidden(self, batch: Batch) -> Tensor:
        """As `logits`, but the hidden states after the final norm, [rows, hidden] float32 on the CPU."""
