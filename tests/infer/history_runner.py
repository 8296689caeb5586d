"""A runner without a model: each token's logits are a hash of all tokens before it, as the blocks give them back."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Ids
from liuyi.infer.sampling import choose
from liuyi.model.config import DecoderConfig


class HistoryRunner:
    """Keeps token ids where a model keeps keys and values, so that a block in the wrong place changes what follows."""

    name, format, device = "history", "fp32", "cpu"
    block_bytes = 4 * BLOCK_TOKENS
    weight_bytes = 1

    def __init__(self, config: DecoderConfig, blocks: int, stops: int = 1) -> None:
        self.config = config
        self.blocks = blocks
        self.stops = stops
        self.kept = np.full((stops, blocks, BLOCK_TOKENS), -1)
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
            table, tokens = batch.tables[sequence], batch.tokens[at : at + count]
            layers = self._layers(batch, tokens) if sequence == len(batch.counts) - 1 else slice(None)
            for position, token in zip(range(length, length + count), tokens, strict=True):
                self.kept[layers, table[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = token
            text = self.kept[:, table[: -(-(length + count) // BLOCK_TOKENS)]].reshape(self.stops, -1)
            histories += [_seen(text[:, : position + 1]) for position in range(length, length + count)]
            at += count
        return torch.stack([logits_after(histories[row], self.config.vocab_size) for row in batch.rows] or [_NONE])

    def choose(self, batch: Batch, draws: Draws | None = None) -> Ids:
        return choose(self.logits(batch), draws)

    def _layers(self, batch: Batch, tokens: Ids) -> slice:
        """What the last sequence goes through; its residual stream says what it has been through."""
        layers = batch.layers
        if layers is None:
            return slice(None)
        assert 0 <= layers.begin < layers.end <= self.stops
        assert layers.residual.shape == (len(tokens), self.config.hidden_size)
        before = np.stack([tokens, np.full(len(tokens), layers.begin)], axis=1)
        assert layers.begin == 0 or np.array_equal(layers.residual[:, :2], before)
        layers.residual[:, 0], layers.residual[:, 1] = tokens, layers.end
        return slice(layers.begin, layers.end)

    def hidden(self, batch: Batch) -> Tensor:
        return self.logits(batch)


def logits_after(history: list[int], vocab: int) -> Tensor:
    """Logits [vocab] that any change of the history changes."""
    seed = int.from_bytes(hashlib.blake2b(repr(history).encode(), digest_size=4).digest())
    return torch.from_numpy(np.random.default_rng(seed).normal(size=vocab).astype(np.float32) * 4)


def _seen(text: NDArray[np.int64]) -> list[int]:
    """A text [layers, tokens] that is the same in every layer; else what no history is."""
    tokens: list[int] = text[0].tolist()
    return tokens if (text == text[0]).all() else [-2, *tokens]


_NONE = torch.empty(0)
