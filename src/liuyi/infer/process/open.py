"""From a specification to an engine; the only part of the process that loads the model."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from liuyi.infer.engine import Engine
from liuyi.infer.process.messages import EngineSpec
from liuyi.model.checkpoint import load_model
from liuyi.model.config import DecoderConfig
from liuyi.model.tokenizer import Tokenizer


def open_engine(spec: EngineSpec) -> Engine:
    """The engine over a model folder; as many slots as fit into a quarter of the free memory, up to 64, by default.

    Raises ModelError if the folder cannot be read.
    """
    folder = Path(spec.model)
    dtype = torch.bfloat16 if spec.dtype == "bf16" else torch.float32
    model, tokenizer = load_model(folder, dtype=dtype), Tokenizer.load(folder)
    context = min(spec.max_tokens or model.config.max_position_embeddings, model.config.max_position_embeddings)
    slots = spec.max_slots or slots_that_fit(model.config, context, dtype)
    return Engine(model, tokenizer, max_slots=slots, max_tokens=context, seed=spec.seed)


def slots_that_fit(
    config: DecoderConfig, max_tokens: int, dtype: torch.dtype, most: int = 64, share: float = 0.25
) -> int:
    """How many slots of `max_tokens` tokens fit into a share of the memory that is free now; at least one."""
    token_bytes = 2 * dtype.itemsize * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    free = psutil.virtual_memory().available
    return max(1, min(most, int(free * share / (token_bytes * max_tokens))))
