"""From a specification to an engine; the only part of the process that loads the model."""

from __future__ import annotations

from pathlib import Path

import torch

from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.process.messages import EngineSpec
from liuyi.model.load import load


def open_engine(spec: EngineSpec) -> Engine:
    """The engine over a model folder or a GGUF file, on the GPU where there is one.

    Raises ModelError if it cannot be read, or cannot be run as `spec` says.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(Path(spec.model), device=device)
    context = min(spec.max_tokens or model.config.context_tokens, model.config.context_tokens)
    runner = open_runner(
        model,
        weights=spec.weights,
        kv=spec.kv,
        slots=spec.max_slots,
        max_tokens=context,
        kv_tokens=spec.kv_tokens,
    )
    return Engine(runner, tokenizer, max_slots=spec.max_slots, max_tokens=context, seed=spec.seed, stretch=spec.stretch)
