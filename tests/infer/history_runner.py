"""A runner without a model: each token's logits are a hash of all tokens before it, as the blocks give them back."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from liuyi.infer.runner import BLOCK_TOKENS, Batch
from liuyi.model.config import DecoderConfig


class HistoryRunner:
    """Keeps token ids where a model keeps keys and values, so that a block in the wrong place changes what follows."""

    name, format, device = "history", "fp32", "cpu"
    block_bytes = 4 * BLOCK_TOKENS
    weight_bytes = 1

    def __init__(self, config: DecoderConfig, blocks: int) -> None:
        self.config = config
        self.blocks = blocks
        self.kept = np.full((blocks, BLOCK_TOKENS), -1)
        self.batches: list[Batch] = []

    @property
    def read(self) -> list[int]:
        """Tokens of each step."""
        return [len(batch.tokens) for batch in self.batches]

    def logits(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        histories: list[list[int]] = []
        at = 0
        for sequence, (count, length) in enumerate(zip(batch.counts, batch.lengths, strict=True)):
            table = batch.tables[sequence]
            for position in range(length, length + count):
                self.kept[table[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = batch.tokens[at]
                at += 1
            text = self.kept[table[: -(-(length + count) // BLOCK_TOKENS)]].ravel()
            histories += [text[: position + 1].tolist() for position in range(length, length + count)]
        return torch.stack([logits_after(histories[row], self.config.vocab_size) for row in batch.rows] or [_NONE])

    def hidden(self, batch: Batch) -> Tensor:
        return self.logits(batch)


def logits_after(history: list[int], vocab: int) -> Tensor:
    """Logits [vocab] that any change of the history changes."""
    seed = int.from_bytes(hashlib.blake2b(repr(history).encode(), digest_size=4).digest())
    return torch.from_numpy(np.random.default_rng(seed).normal(size=vocab).astype(np.float32) * 4)


_NONE = torch.empty(0)
