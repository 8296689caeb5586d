"""An exponential moving average of what is trained, kept beside it; smoother than the last weights, and often better.

The decay rises with the steps, min(decay, (1 + step) / (10 + step)), so that the average forgets where it began.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """A `Monitor` of the training loop that never ends a run; the average is part of every checkpoint."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> str:
        """Move the average towards the weights."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.average.items():
            average.lerp_(model.get_parameter(name), share)
        return ""

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Give the model the average for its weights."""
        for name, average in self.average.items():
            model.get_parameter(name).copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        return self.average

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        for name, average in self.average.items():
            average.copy_(tensors[name])
