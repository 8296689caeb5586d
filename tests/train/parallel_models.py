"""Tiny models of different shapes to divide, and what one process makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from train_support import VOCAB

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.loss import linear_cross_entropy
from liuyi.train.batches import Batch
from liuyi.train.lm import CausalLM, CrossEntropy

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral": {"family": "mistral", "sliding_window": 9, "num_key_value_heads": 4},
    "qwen2": {"family": "qwen2", "attention_bias": True, "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 12, "tie_word_embeddings": True},
    "experts": {"family": "qwen3_moe", "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2},
}


def divisible_model(shape: str) -> Decoder:
    """Random everywhere, norms and biases too, so that none can hide."""
    own = {"tie_word_embeddings": False, "moe_intermediate_size": 24} | SHAPES[shape]
    config = DecoderConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "router_aux_loss_coef": 0.0,
        }
        | own
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            fresh = torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator)
            parameter.copy_(fresh + (1.0 if parameter.dim() == 1 else 0.0))
    return model


Outcome = tuple[float, dict[str, NDArray[np.float64]]]
"""A loss, and gradients by the names of parameters."""


def outcome(
    model: Decoder, batch: Batch, cross_entropy: CrossEntropy = linear_cross_entropy
) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of a batch, and its gradients."""
    model.zero_grad()
    total = CausalLM(cross_entropy=cross_entropy)(model, batch).total
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Outcome, expected: tuple[float, dict[str, Tensor]], tolerance: float = 2e-5) -> None:
    """The same loss and gradients, but for rounding: relative to the largest number of each."""
    assert abs(found[0] - expected[0]) <= tolerance * abs(expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        difference = np.abs(found[1][name] - grad.double().numpy()).max()
        assert difference <= tolerance * float(grad.abs().max()), name
