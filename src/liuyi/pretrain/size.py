"""One dial: `size: 5m` sets width, depth, heads, learning rate and batch of a decoder to be trained from scratch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from liuyi.core.errors import DataError
from liuyi.model.config import DecoderConfig

HEAD_DIM = 64
WIDEST = 8192
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Recommended:
    """What goes with a size."""

    lr: float
    """Peak learning rate of Muon's matrices; AdamW alone takes a third of it."""
    embed_lr: float
    scalar_lr: float
    batch_tokens: int


def parse_size(text: str) -> int:
    """Number of parameters that `800k`, `5m` or `1.5b` names. Raises DataError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmb])\s*", text.lower())
    if not match:
        raise DataError(f"'{text}' is not a model size", hint="write it as 800k, 5m or 1.5b")
    return round(float(match[1]) * _UNITS[match[2]])


def config_for_size(
    parameters: int, *, vocab_size: int, seq_len: int, eos_id: int, pad_id: int | None, tie_embeddings: bool = False
) -> DecoderConfig:
    """The decoder nearest to that many parameters: a layer for 64 channels of width, four layers at least.

    Raises DataError for more parameters than the widest of them has.
    """
    candidates = [
        DecoderConfig(
            family="qwen3",
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=max(4, round(width / HEAD_DIM)),
            num_attention_heads=width // HEAD_DIM,
            num_key_value_heads=_kv_heads(width // HEAD_DIM),
            head_dim=HEAD_DIM,
            max_position_embeddings=max(2048, seq_len),
            rope_theta=10_000.0,
            tie_word_embeddings=tie_embeddings,
            qk_norm=True,
            bos_token_id=eos_id,
            eos_token_id=eos_id,
            pad_token_id=pad_id,
        )
        for width in range(HEAD_DIM, WIDEST + 1, HEAD_DIM)
    ]
    largest = candidates[-1].num_parameters
    if parameters > largest:
        raise DataError(
            f"the dial ends at {largest / 1e9:.0f}b parameters, and {parameters / 1e9:.0f}b are asked for",
            hint="take a smaller size, or go on from a model of that size",
        )
    return min(candidates, key=lambda config: abs(config.num_parameters - parameters))


def _kv_heads(heads: int) -> int:
    """Small models keep all of them: there is no cache to save."""
    return heads if heads <= 4 else next(kv for kv in range(max(1, heads // 4), heads + 1) if heads % kv == 0)


def recommended(config: DecoderConfig) -> Recommended:
    """Learning rates fall with the root of the width, the batch grows with the root of the number of parameters."""
    narrower = (128 / config.hidden_size) ** 0.5
    batch = 2 ** round(math.log2(2 * config.num_parameters**0.5))
    return Recommended(lr=0.008 * narrower, embed_lr=0.02 * narrower, scalar_lr=0.008, batch_tokens=max(4096, batch))
