"""Products of matrices: in bfloat16 on a CPU with a matrix unit by a kernel of our own, else by PyTorch.

    y = linear(x, weight)                    # x·weightᵀ, differentiated
    grad_weight = product(grad.T, x)         # left·right, within an autograd function

oneDNN is slow where the sum is long and the result narrow, and where an operand is transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liuyi.kernels.training import training_kernels


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left [rows, inner] · right [inner, columns], in their dtype; not for autograd to differentiate."""
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    well = _lies_well(left) and _lies_well(right) and _lies_well(out) and out.stride(1) == 1
    if well and (native := training_kernels()) and native.has_amx:
        native.product(left, right, out)
        return out
    return torch.mm(left, right, out=out)


def _lies_well(matrix: Tensor) -> bool:
    """Whether the kernel takes it: plain bfloat16 in memory, not empty, and neighbours in rows or in columns."""
    plain = type(matrix) is Tensor and matrix.dtype == torch.bfloat16 and matrix.device.type == "cpu"
    return plain and matrix.numel() > 0 and (matrix.stride(1) == 1 or matrix.stride(0) == 1)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.linear` without a bias: x [..., inner] · weightᵀ [inner, columns] in their dtype."""
    if torch.compiler.is_compiling() or x.dtype != torch.bfloat16 or type(x) is not Tensor or x.device.type != "cpu":
        return functional.linear(x, weight)
    made: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return made


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = product(grad, weight).view(x.shape) if needs_x else None
        return grad_x, product(grad.T, x.reshape(-1, x.shape[-1])) if needs_weight else None
