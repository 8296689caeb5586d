"""Matrices with the same input as one product, and the MLP as one function: fewer and larger products in training.

Where the working copies of weights lie side by side (`model/working.py`), query, key and value are rows of one matrix,
and so are gate and up. The gradient of the input is then one product too, and needs no sum. The MLP makes its inner
values again for the gradient rather than keep them.

Both give None where layers are not plain ones, or something else is asked of them: the caller then takes them one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from liuyi.kernels.training import TrainingKernels
from liuyi.model.fused import native_for
from liuyi.model.products import product
from liuyi.model.working import joined


def joined_products(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...] | None:
    """What each of the layers makes of x [..., in_features]."""
    weights = plain_weights(layers)
    if weights is None or not native_for(x, width=x.shape[-1]) or (matrix := joined(weights, x.dtype)) is None:
        return None
    made: tuple[Tensor, ...] = _JoinedProducts.apply(x, matrix, *weights)  # type: ignore[no-untyped-call]
    return made


def joined_mlp(x: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module) -> Tensor | None:
    """down(silu(gate(x)) · up(x)) for x [..., in_features]; layers of a kind with an `mlp` of their own are asked."""
    if type(gate) is type(up) is type(down) and (of_kind := getattr(type(gate), "mlp", None)) is not None:
        made: Tensor | None = of_kind(x, gate, up, down)
        return made
    weights = plain_weights((gate, up, down))
    if weights is None or weights[0].shape != weights[1].shape:
        return None
    if not (native := native_for(x, width=weights[0].shape[0])):
        return None
    both, back = (joined(some, x.dtype) for some in (weights[:2], weights[2:]))
    if both is None or back is None:
        return None
    joined_up: Tensor = _JoinedMLP.apply(x, both, back, native, *weights)  # type: ignore[no-untyped-call]
    return joined_up


def is_watched(layer: nn.Module) -> bool:
    """Whether its call is more than its class's `forward`: that was replaced, or hooks look on."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return "forward" in vars(layer) or any(hooks)


def plain_weights(layers: Sequence[nn.Module]) -> list[Tensor] | None:
    """The layers' weights, if these are all that they multiply by and nobody looks on."""
    if torch.compiler.is_compiling():
        return None
    weights: list[Tensor] = []
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            return None
        if is_watched(layer) or layer.bias is not None or not layer.weight.requires_grad:
            return None
        weights.append(layer.weight)
    return weights


class _JoinedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, matrix)
        ctx.rows = [weight.shape[0] for weight in weights]
        rows = x.view(-1, x.shape[-1])
        # One by one, for each must lie by itself afterwards.
        return tuple(product(rows, part.T).view(*x.shape[:-1], -1) for part in torch.split(matrix, ctx.rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        grad = torch.cat([one.reshape(-1, one.shape[-1]) for one in grads], dim=-1)
        grad_matrix = product(grad.T, x.view(-1, x.shape[-1]))
        return product(grad, matrix).view_as(x), None, *torch.split(grad_matrix, ctx.rows)


class _JoinedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, both: Tensor, back: Tensor, native: TrainingKernels, *weights: Tensor) -> Tensor:
        gate_up = product(x.view(-1, x.shape[-1]), both.T)
        ctx.save_for_backward(x, both, back, gate_up)
        ctx.native = native
        gate, up = gate_up.chunk(2, dim=-1)
        inner = gate.new_empty(gate.shape)
        native.swiglu(gate, up, inner)
        return product(inner, back.T).view(*x.shape[:-1], back.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, both, back, gate_up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        inner = gate.new_empty(gate.shape)
        ctx.native.swiglu_backward(gate, up, product(grad, back), grad_gate, grad_up, inner)
        grad_both = product(grad_gate_up.T, x.view(-1, x.shape[-1]))
        return product(grad_gate_up, both).view_as(x), None, None, None, *grad_both.chunk(2), product(grad.T, inner)
