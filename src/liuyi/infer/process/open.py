"""From a specification to an engine; the only part of the process that loads the model."""

from __future__ import annotations

from pathlib import Path

import torch

from liuyi.core.errors import ModelError
from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.process.messages import EngineSpec
from liuyi.infer.speculate.draft_model import DraftModel
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.infer.speculate.speculator import Drafter
from liuyi.model.adapter import Adapter
from liuyi.model.decoder import Decoder
from liuyi.model.load import load
from liuyi.model.merge import merge_adapter


def open_engine(spec: EngineSpec) -> Engine:
    """The engine over a model folder or a GGUF file, on the GPU where there is one.

    Raises ModelError if it cannot be read, or cannot be run as `spec` says.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(Path(spec.model), device=device)
    if spec.merged is not None:
        model, _ = merge_adapter(model, Adapter.load(Path(spec.merged)))
    context = spec.max_tokens or model.config.context_tokens
    if context > model.config.context_tokens:
        raise ModelError(
            f"{context:,} tokens of prompt and answer are more than the model's context of "
            f"{model.config.context_tokens:,}",
            where=spec.model,
            hint="RoPE scaling in its config.json would make that longer",
        )
    runner = open_runner(
        model,
        weights=spec.weights,
        kv=spec.kv,
        slots=spec.max_slots,
        max_tokens=context,
        kv_tokens=spec.kv_tokens,
    )
    engine = Engine(
        runner,
        tokenizer,
        max_slots=spec.max_slots,
        max_tokens=context,
        stretch=spec.stretch,
        drafter=_drafter(spec, model, context),
        seed=spec.seed,
    )
    for name, folder in spec.adapters.items():
        engine.adapters.load(name, Adapter.load(Path(folder)))
    return engine


def _drafter(spec: EngineSpec, model: Decoder, context: int) -> Drafter | None:
    if spec.speculate is None:
        return None
    if spec.speculate == "lookup":
        return PromptLookup()
    path = Path(spec.speculate)
    small, _ = load(path, device=model.device)
    if small.config.vocab_size != model.config.vocab_size:
        raise ModelError(
            f"a draft model needs the vocabulary of the large one: {small.config.vocab_size} tokens, "
            f"not {model.config.vocab_size}",
            where=str(path),
        )
    return DraftModel(open_runner(small, weights=spec.weights, slots=spec.max_slots, max_tokens=context))
