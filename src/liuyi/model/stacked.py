"""Adapters with their frozen matrices and B's in one memory, so that thin products are part of the large ones.

    y = [x | x·Aᵀ] · [W | scale·B]ᵀ          and, for the gradient g of y,       [g·W | scale·g·B] = g · [W | scale·B]

Matrices that read the same x (query, key and value; gate and up) lie over one another, each B in columns of its own.
What an adapter adds to y costs no pass over y then, and g·B needs none over g. `low_rank_products_reference` is the
formula. The MLP is one function besides, which makes its inner values again for the gradient rather than keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liuyi.kernels.training import TrainingKernels
from liuyi.model.working import WorkingCopy, in_dtype


class Stack:
    """[W | scale·B] of several layers, [all out_features, in_features + all ranks]; the W's are views of it."""

    def __init__(self, weights: Sequence[Tensor], downs: Sequence[Tensor], ups: Sequence[Tensor], scale: float):
        """The frozen `weights` are moved into it; A (of `downs`) and B (of `ups`) are trained, and read where they are.

        W [out_features, in_features], A [rank, in_features], B [out_features, rank].
        """
        self.weights, self.downs, self.ups, self.scale = weights, downs, ups, scale
        self.rows, self.columns = [weight.shape[0] for weight in weights], weights[0].shape[1]
        self.ranks = [up.shape[1] for up in ups]
        self.matrix = weights[0].new_zeros(sum(self.rows), self.columns + sum(self.ranks))
        self.parts = torch.split(self.matrix, self.rows)
        self.copies: list[WorkingCopy] = []
        at = self.columns
        for weight, part, rank in zip(weights, self.parts, self.ranks, strict=True):
            weight.data = part[:, : self.columns].copy_(weight.detach())
            self.copies.append(WorkingCopy(part[:, at : at + rank], scale))
            at += rank

    def serves(self, x: Tensor) -> bool:
        """Whether the weights are still where they were put, and have the dtype and the device of x."""
        if self.matrix.dtype != x.dtype or self.matrix.device != x.device or torch.compiler.is_compiling():
            return False
        return all(weight.data_ptr() == part.data_ptr() for weight, part in zip(self.weights, self.parts, strict=True))

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[x | x·Aᵀ], of which each row is a token, and all A's over one another; the B's are brought up to date."""
        for copy, up in zip(self.copies, self.ups, strict=True):
            copy.of(up)
        down = torch.cat([in_dtype(each, x.dtype) for each in self.downs])
        rows = x.reshape(-1, self.columns)
        wide = rows.new_empty(rows.shape[0], self.matrix.shape[1])
        wide[:, : self.columns] = rows
        wide[:, self.columns :] = rows @ down.T
        return wide, down

    def gradients(self, grad: Tensor, wide: Tensor, down: Tensor, needs_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Of x [tokens, in_features], None if nobody asks for it, and of each A and each B.

        `grad` [tokens, all out_features] is that of all y's side by side; `wide` and `down` are of `beside`.
        """
        columns = self.columns
        if needs_x:
            total = grad @ self.matrix
            grad_lows = total[:, columns:]
            grad_x = torch.addmm(total[:, :columns], grad_lows, down)
        else:
            grad_lows, grad_x = grad @ self.matrix[:, columns:], None
        grad_downs = torch.split(grad_lows.T @ wide[:, :columns], self.ranks)
        # Of all A's with all y's those of a B and its own y are wanted; one pass over `grad` makes all of them.
        crossed = torch.split((wide[:, columns:].T @ grad).mul_(self.scale), self.ranks)
        grad_ups = [torch.split(ranks, self.rows, dim=1)[number].T.contiguous() for number, ranks in enumerate(crossed)]
        return grad_x, [*grad_downs, *grad_ups]


def stacked_products(x: Tensor, stack: Stack, biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """`low_rank_products_reference` of the stack's layers, with gradients for x [..., in_features], A's and B's."""
    ys: tuple[Tensor, ...] = _StackedProducts.apply(x, stack, tuple(biases), *stack.downs, *stack.ups)  # type: ignore[no-untyped-call]
    return ys


class _StackedProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: Stack, biases: tuple[Tensor | None, ...], *thin: Tensor
    ) -> tuple[Tensor, ...]:
        wide, down = stack.beside(x)
        ys = []
        for part, bias in zip(stack.parts, biases, strict=True):
            y = wide @ part.T
            ys.append((y if bias is None else y.add_(bias.to(y.dtype))).view(*x.shape[:-1], y.shape[1]))
        ctx.save_for_backward(wide, down)
        ctx.stack, ctx.shape = stack, x.shape
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        grad_x, thin = ctx.stack.gradients(grad, *ctx.saved_tensors, ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(ctx.shape), None, None, *thin


def stacked_mlp(
    x: Tensor, stack: Stack, back: Tensor, down: Tensor, up: Tensor, scale: float, native: TrainingKernels
) -> Tensor:
    """back(silu(gate(x)) · up(x)) for x [..., in_features], of which the stack has gate and up.

    `back` is the frozen matrix of the last projection, with A `down` and B `up` times `scale` beside it. None of the
    three has a bias.
    """
    made: Tensor = _StackedMLP.apply(x, stack, back, scale, native, *stack.downs, *stack.ups, down, up)  # type: ignore[no-untyped-call]
    return made


class _StackedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: Stack, back: Tensor, scale: float, native: TrainingKernels, *thin: Tensor
    ) -> Tensor:
        wide, down = stack.beside(x)
        back_down, back_up = (in_dtype(each, x.dtype) for each in thin[-2:])
        gate_up = wide @ stack.matrix.T
        gate, up = gate_up.chunk(2, dim=-1)
        inner = gate.new_empty(gate.shape)
        native.swiglu(gate, up, inner)
        low = inner @ back_down.T
        y = (inner @ back.T).addmm_(low, back_up.T, alpha=scale)
        ctx.save_for_backward(wide, down, gate_up, low, back_down, back_up)
        ctx.stack, ctx.back, ctx.scale, ctx.native, ctx.shape = stack, back, scale, native, x.shape
        return y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        wide, down, gate_up, low, back_down, back_up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ back_up).mul_(ctx.scale)
        grad_inner = (grad @ ctx.back).addmm_(grad_low, back_down)
        grad_gate_up, inner = torch.empty_like(gate_up), torch.empty_like(grad_inner)
        ctx.native.swiglu_backward(*gate_up.chunk(2, dim=-1), grad_inner, *grad_gate_up.chunk(2, dim=-1), inner)
        grad_back = grad_low.T @ inner, (low.T @ grad).mul_(ctx.scale).T.contiguous()
        grad_x, thin = ctx.stack.gradients(grad_gate_up, wide, down, ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(ctx.shape), None, None, None, None, *thin, *grad_back
