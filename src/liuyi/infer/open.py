"""Runners for a model, sized to the memory there is."""

from __future__ import annotations

import psutil
import torch

from liuyi.infer.blocks import blocks_for
from liuyi.infer.runner import BLOCK_TOKENS, Runner
from liuyi.infer.torch_runner import TorchRunner, kv_token_bytes
from liuyi.model.decoder import Decoder

KV_SHARE = 0.25
"""Part of the free memory that keys and values may take where nobody says how much."""


def reference(model: Decoder, *, slots: int, max_tokens: int) -> Runner:
    """The decoder as it is, with blocks for `slots` sequences of `max_tokens` or, if that is less, as many as fit."""
    bytes_per_token = kv_token_bytes(model.config, model.dtype.itemsize)
    return TorchRunner(model, blocks_that_fit(bytes_per_token, model.device, most=slots * blocks_for(max_tokens)))


def blocks_that_fit(bytes_per_token: int, device: torch.device, *, most: int) -> int:
    """How many blocks fit into a share of the memory that is free now; at least one, and no more than `most`."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(most, int(KV_SHARE * free) // (BLOCK_TOKENS * bytes_per_token)))
