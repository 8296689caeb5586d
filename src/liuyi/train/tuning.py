"""Which of a model's parameters are trained: all, some layers or modules, or an adapter beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder
from liuyi.model.lora import LoraConfig, add_lora, hold_frozen
from liuyi.model.quantize import quantization_of

Method = Literal["full", "freeze", "lora"]


@dataclass(frozen=True)
class Tuning:
    """What to train."""

    method: Method = "full"
    lora: LoraConfig | None = None
    """With method `lora`."""
    layers: int = 0
    """With method `freeze`, so many of the last layers are trained."""
    modules: tuple[str, ...] = ()
    """With method `freeze`, modules of these names are trained too, in every layer: `lm_head`, `mlp`, `norm`."""


def prepare(model: Decoder, tuning: Tuning, seed: int, compute_dtype: torch.dtype | None = None) -> None:
    """Freeze what is not trained, and add the adapter where one is.

    Matrices under an adapter are then kept in `compute_dtype`, in which they are multiplied; as they are when None.
    Raises ModelError for layers and modules that there are not, and for quantised weights.
    """
    demand_whole_weights(model)
    if tuning.lora is not None:
        add_lora(model, tuning.lora, seed)
        if compute_dtype is not None:
            hold_frozen(model, compute_dtype)
    elif tuning.method == "freeze":
        train_only(model, tuning.layers, tuning.modules)


def demand_whole_weights(model: Decoder) -> None:
    """Raises ModelError for a model whose weights are quantised: what was rounded to few bits cannot learn further."""
    fmt = quantization_of(model)
    if fmt is not None:
        hint = "train the model that it was made of, and quantise what comes of it"
        raise ModelError(f"the model's weights are {fmt}, which can be served and not trained", hint=hint)


def train_only(model: Decoder, layers: int, modules: Sequence[str]) -> None:
    """Freeze all but the last `layers` layers and the modules of these names."""
    depth = model.config.num_hidden_layers
    if layers > depth:
        raise ModelError(f"the model has {depth} layers, not {layers}")
    found: set[str] = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        named = set(parts) & set(modules)
        found |= named
        last = parts[1] == "layers" and int(parts[2]) >= depth - layers
        parameter.requires_grad_(bool(named) or last)
    for name in modules:
        if name not in found:
            known = {part for each, _ in model.named_parameters() for part in each.split(".") if part.isidentifier()}
            raise ModelError(f"the model has no module '{name}'", hint=f"known: {', '.join(sorted(known))}")
