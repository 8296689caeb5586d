"""How many floating-point operations a model's training takes, by its shape and by what of it is trained.

A trained matrix costs 6 operations a weight and token: 2 forward, 2 for the gradient of its input, 2 for its own. A
frozen one costs 4, and 2 where nothing below it is trained. Attention costs 12 · heads · head_dim a layer for each
token and each key of its document (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B), forward and backward.
What is computed twice to save memory counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from liuyi.model.decoder import Decoder
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.optim import layer_number

Keys = tuple[tuple[int | None, float], ...]


@dataclass(frozen=True)
class ModelFlops:
    """What training costs."""

    token: float
    """FLOPs of the layers' matrices for each token."""
    target: float
    """FLOPs of the head for each token whose next one is learnt: logits of others are not computed."""
    keys: Keys
    """FLOPs of attention for each token and key, by the window that limits the keys."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelFlops:
        """Of a decoder, or of a model that has one inside; of no decoder, nothing."""
        decoder = next((part for part in model.modules() if isinstance(part, Decoder)), None)
        if decoder is None:
            return cls(0.0, 0.0, ())
        config = decoder.config
        lowest = _lowest_trained(decoder)
        active = config.num_experts_per_tok / config.num_experts if config.num_experts else 1.0
        token = sum(
            _share(layer, lowest, trained) * numel * (active if ".experts." in name else 1.0)
            for name, layer, numel, trained in _matrices(decoder)
        )
        head = decoder.model.embed_tokens.weight if decoder.lm_head is None else decoder.lm_head.weight
        above = _share(config.num_hidden_layers, lowest, head.requires_grad)
        width = config.num_attention_heads * config.head_dim
        keys: Counter[int | None] = Counter()
        for layer in range(config.num_hidden_layers):
            keys[config.window(layer)] += width * (12 if layer >= lowest else 4)
        # A model around the decoder, such as a reward model, reads hidden states and makes no logits.
        target = float(above * head.numel()) if decoder is model else 0.0
        return cls(float(token), target, tuple((window, float(cost)) for window, cost in keys.items()))

    def batch(self, batch: Batch) -> float:
        """FLOPs of learning from packed rows."""
        targets = int((batch.targets != IGNORE).sum()) if self.target else 0
        attended = sum(cost * keys_of_documents(batch.positions, window) for window, cost in self.keys)
        return self.token * batch.tokens.numel() + self.target * targets + attended


def keys_of_documents(positions: torch.Tensor, window: int | None) -> int:
    """Keys that all tokens together have by the formula, which counts those behind a token as well as those before it:
    of a document of n tokens n². `positions` [rows, seq] restart with each document."""
    seen = positions + 1 if window is None else (positions + 1).clamp(max=window)
    return int((2 * seen - 1).sum())


def _matrices(decoder: Decoder) -> Iterator[tuple[str, int, int, bool]]:
    """(name, layer, numbers, whether they are trained) of every matrix of the layers."""
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2 and layer_number(name) >= 0:
            yield name, layer_number(name), parameter.numel(), parameter.requires_grad
    for name, buffer in decoder.named_buffers():
        if name.endswith(".codes"):  # four bits a number
            yield name, layer_number(name), 2 * buffer.numel(), False


def _lowest_trained(decoder: Decoder) -> int:
    """The lowest layer with a gradient to pass on: −1 with the embeddings, beyond the head where no layer has."""
    trained = [name for name, parameter in decoder.named_parameters() if parameter.requires_grad]
    inside = [layer_number(name) for name in trained if layer_number(name) >= 0]
    if any("embed_tokens" in name for name in trained):
        return -1
    return min(inside, default=decoder.config.num_hidden_layers + 1)


def _share(layer: int, lowest: int, trained: bool) -> int:
    return 2 + 2 * trained + 2 * (layer >= lowest)
