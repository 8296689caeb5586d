"""Frozen matrices and the thin products beside them as one function of their own: y = x·(W + scale·B·A)ᵀ + b.

Written as a formula it takes several passes over y and over the gradient of x, and these cost more than the thin
products do. Here what is thin is added where the large product lies, and layers that read the same x (query, key and
value; gate and up) multiply it by their A's side by side, and sum its gradient in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Frozen(Protocol):
    """A linear layer that is not trained."""

    bias: Any

    def widened(self) -> Tensor:
        """Its matrix, [out_features, in_features]."""


def low_rank_products_reference(
    x: Tensor, bases: Sequence[Frozen], downs: Sequence[Tensor], ups: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, ...]:
    """The formula, for each layer: x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ in the dtype of x.

    x [..., in_features], A (of `downs`) [rank, in_features], B (of `ups`) [out_features, rank].
    """
    found = []
    for base, down, up, scale in zip(bases, downs, ups, scales, strict=True):
        bias = None if base.bias is None else base.bias.to(x.dtype)
        y = functional.linear(x, base.widened().to(x.dtype), bias)
        low = functional.linear(functional.linear(x, down.to(x.dtype)), up.to(x.dtype))
        found.append(y + low * scale)
    return tuple(found)


def low_rank_products(
    x: Tensor, bases: Sequence[Frozen], downs: Sequence[Tensor], ups: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, ...]:
    """`low_rank_products_reference`, with gradients for x, `downs` and `ups` and none for `bases`.

    Of x and a thin product nothing is kept twice; a matrix is asked for again for the gradient, so that one in four
    bits is widened twice and never kept.
    """
    ys: tuple[Tensor, ...] = _LowRankProducts.apply(x, tuple(bases), tuple(scales), *downs, *ups)  # type: ignore[no-untyped-call]
    return ys


class _LowRankProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases: tuple[Frozen, ...], scales: tuple[float, ...], *thin: Tensor
    ) -> tuple[Tensor, ...]:
        downs, ups = thin[: len(bases)], [up.to(x.dtype) for up in thin[len(bases) :]]
        rows = x.reshape(-1, x.shape[-1])
        down = torch.cat([each.to(x.dtype) for each in downs])
        lows = rows @ down.T
        ys = []
        parts = torch.split(lows, [each.shape[0] for each in downs], dim=1)
        for base, low, up, scale in zip(bases, parts, ups, scales, strict=True):
            bias = None if base.bias is None else base.bias.to(x.dtype)
            y = functional.linear(rows, base.widened().to(x.dtype), bias)
            ys.append(y.addmm_(low, up.T, alpha=scale).view(*x.shape[:-1], up.shape[0]))
        ctx.save_for_backward(x, lows, down, *ups)
        ctx.bases, ctx.scales, ctx.ranks = bases, scales, [each.shape[0] for each in downs]
        ctx.thin_dtypes = [each.dtype for each in thin]
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, lows, down, *ups = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        grads = tuple(grad.reshape(-1, grad.shape[-1]) for grad in grads)
        grad_lows, grad_ups = torch.empty_like(lows), []
        parts, grad_parts = torch.split(lows, ctx.ranks, dim=1), torch.split(grad_lows, ctx.ranks, dim=1)
        for grad, low, grad_low, up, scale in zip(grads, parts, grad_parts, ups, ctx.scales, strict=True):
            torch.mul(grad @ up, scale, out=grad_low)
            grad_ups.append((low.T @ grad).T * scale)
        grad_downs = torch.split(grad_lows.T @ rows, ctx.ranks)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_lows @ down
            for base, grad in zip(ctx.bases, grads, strict=True):
                grad_x.addmm_(grad, base.widened().to(grad.dtype))
            grad_x = grad_x.view(x.shape)
        thin = [each.to(dtype) for each, dtype in zip((*grad_downs, *grad_ups), ctx.thin_dtypes, strict=True)]
        return grad_x, None, None, *thin
