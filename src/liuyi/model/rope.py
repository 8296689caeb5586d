"""Rotary position embeddings (arXiv 2104.09864) and their scalings for long contexts.

Linear interpolation (arXiv 2306.15595), dynamic NTK, YaRN (arXiv 2309.00071) and the frequency bands of Llama 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liuyi.model.config import DecoderConfig


class Rope(nn.Module):
    """Cosines and sines for positions; holds no trained values."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.frequencies: Tensor
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)
        self.scale = yarn_attention_factor(config.rope_scaling or {}) if config.rope_type == "yarn" else 1.0

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, both [rows, seq, 1, head_dim / 2] in float32, for positions [rows, seq].

        With dynamic scaling the base depends on the length that a sequence reaches, taken for each by itself, so that
        its result does not depend on its neighbours in the batch or in the row.
        """
        frequencies = self.frequencies
        if self.config.rope_type == "dynamic" and int(positions.max()) >= self.config.max_position_embeddings:
            frequencies = self._stretched(positions)
        angles = positions[..., None].float() * frequencies
        angles = angles[:, :, None]
        return angles.cos().mul_(self.scale), angles.sin().mul_(self.scale)

    def _stretched(self, positions: Tensor) -> Tensor:
        """Frequencies [rows, seq, head_dim / 2] for the length of each token's sequence; position 0 begins one."""
        sequence = (positions == 0).cumsum(dim=1)
        longest = positions.new_zeros(positions.shape[0], positions.shape[1] + 1)
        lengths = longest.scatter_reduce(1, sequence, positions + 1, "amax").gather(1, sequence)
        different, which = torch.unique(lengths, return_inverse=True)
        table = torch.stack([rope_frequencies(self.config, int(length)) for length in different])
        return table.to(positions.device)[which]


def rope_frequencies(config: DecoderConfig, length: int = 0) -> Tensor:
    """Angle per position of each pair, [head_dim / 2] in float32; `length` matters to dynamic scaling only."""
    dim, base, scaling = config.head_dim, config.rope_theta, config.rope_scaling or {}
    if config.rope_type == "dynamic" and length > config.max_position_embeddings:
        factor = scaling["factor"]
        stretch = factor * length / config.max_position_embeddings - (factor - 1)
        base *= stretch ** (dim / (dim - 2))
    # On the CPU even within `torch.device("meta")`, where a power first imports a second of PyTorch's decompositions.
    plain: Tensor = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if config.rope_type == "linear":
        return plain.div(scaling["factor"])
    if config.rope_type == "llama3":
        return _llama3(plain, scaling)
    if config.rope_type == "yarn":
        return _yarn(plain, config, scaling)
    return plain


def _llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between are blended."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    keep: Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    return torch.lerp(plain / factor, plain, keep)


def _yarn(plain: Tensor, config: DecoderConfig, scaling: dict[str, Any]) -> Tensor:
    """Pairs that turn often over the original context are kept, those that turn rarely are interpolated."""
    dim, base = config.head_dim, config.rope_theta
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = pair_that_turns(scaling.get("beta_fast") or 32)
    high = pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low if high != low else 0.001)
    return torch.lerp(plain, plain / scaling["factor"], ramp.clamp(0, 1))


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """What YaRN multiplies cosines and sines by."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    weight, weight_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return mscale(weight) / mscale(weight_all) if weight and weight_all else mscale(1.0)
