"""Weights in the dtype that they are multiplied in, kept beside the float32 ones that are trained.

    keep_working_copies(model, torch.bfloat16)
    functional.linear(x, in_dtype(layer.weight, x.dtype))

A copy is made when its weight has changed, rather than for each product: once a step, or by the optimiser in the pass
that changes the weight. What counts as a change is PyTorch's own count of writes to a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WorkingCopy:
    """A copy of a weight in another dtype, and which state of the weight it is of."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.values = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        self._version = -1

    def of(self, weight: Tensor) -> Tensor:
        """The copy, made anew if the weight has changed."""
        if self._version != weight._version:
            self.values.copy_(weight.detach())
            self._version = weight._version
        return self.values

    def was_written(self, weight: Tensor) -> None:
        """Say that the copy is that of the weight as it is now."""
        self._version = weight._version


def keep_working_copies(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep a copy in `dtype` of each trained matrix that has another one; of what is laid out over processes, none."""
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter and parameter.requires_grad and parameter.ndim >= 2
        if plain and parameter.dtype != dtype:
            parameter.working_copy = WorkingCopy(parameter, dtype)  # type: ignore[attr-defined]


def working_copy(weight: Tensor) -> WorkingCopy | None:
    """The copy that is kept of a weight, if one is."""
    return getattr(weight, "working_copy", None)


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight.to(dtype)`, from the copy where one is kept."""
    kept = working_copy(weight)
    if kept is None or kept.values.dtype != dtype or torch.compiler.is_compiling():
        return weight.to(dtype)
    with torch.no_grad():
        values = kept.of(weight)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return values
    copied: Tensor = _Copied.apply(weight, values)  # type: ignore[no-untyped-call]
    return copied


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
