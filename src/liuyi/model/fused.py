"""Norm, rotation and SwiGLU as autograd functions of their own: few passes over memory, which is what they cost.

Each has its formula beside it as a reference. In bfloat16 on a CPU they are native kernels, one pass each; `native_for`
says where.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liuyi.kernels.training import LANES, TrainingKernels, training_kernels


def native_for(*activations: Tensor, width: int) -> TrainingKernels | None:
    """The native kernels for training on these bfloat16 tensors whose rows are `width` wide; None where they do not do.

    They do for plain tensors that lie in a CPU's memory row by row. What compiles or differentiates code sees formulas.
    """
    if torch.compiler.is_compiling() or width % LANES or not torch.is_grad_enabled():
        return None
    for tensor in activations:
        plain = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16
        if not plain or not tensor.is_contiguous():
            return None
    return training_kernels()


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension (arXiv 1910.07467)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference` for x [..., size] and weight [size], taken and returned in the dtype of x."""
    weight = weight.to(x.dtype)
    if torch.compiler.is_compiling():
        return rms_norm_reference(x, weight, eps)
    if not torch.is_grad_enabled():
        return _norm(x, weight, eps)[0]
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    # Rounded once, at its end: an error of the scale is one of the whole row.
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        shape, size = x.shape, x.shape[-1]
        x, grad = x.reshape(-1, size), grad.reshape(-1, size)
        product, scale = grad * x, scale.view(-1, 1)
        along = (product @ weight)[:, None]
        grad_weight = (scale.T @ product).squeeze(0)
        grad_x = torch.mul(grad, weight, out=product).mul_(scale)
        grad_x.addcmul_(x, along * scale.pow(3), value=-1 / size)
        return grad_x.view(shape), grad_weight, None


def add_norm_reference(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + delta, and its norm in `dtype`."""
    total = x + delta
    return total, rms_norm_reference(total, weight, eps).to(dtype)


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`add_norm_reference`: what a layer adds to the residual stream x [..., size], and the norm that comes next."""
    if dtype == torch.bfloat16 and is_stream(x, weight) and (native := native_for(delta, width=x.shape[-1])):
        return _NativeAddNorm.apply(x, delta, weight, eps, native)  # type: ignore[no-untyped-call, no-any-return]
    total = x + delta
    return total, rms_norm(total, weight, eps).to(dtype)


def add(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in the dtype of x: what a layer adds to the residual stream x [..., size]."""
    same = x.shape == delta.shape
    if same and is_stream(x) and (native := native_for(delta, width=x.shape[-1])):
        return _NativeAdd.apply(x, delta, native)  # type: ignore[no-untyped-call, no-any-return]
    return x + delta


def norm_to(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`rms_norm` with its result in `dtype`."""
    if dtype == torch.bfloat16 and is_stream(x, weight) and (native := native_for(width=x.shape[-1])):
        return _NativeNorm.apply(x, weight, eps, native)  # type: ignore[no-untyped-call, no-any-return]
    return rms_norm(x, weight, eps).to(dtype)


def is_stream(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether they are a float32 residual stream and its norm's weight, plain ones in a CPU's memory."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    if weight is None:
        return plain
    return plain and type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype and weight.is_contiguous()


class _NativeAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, native: TrainingKernels) -> Tensor:
        total = torch.empty_like(x)
        native.add(x, delta, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad.to(torch.bfloat16), None


class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, native: TrainingKernels) -> Tensor:
        normed, scale = torch.empty_like(x, dtype=torch.bfloat16), x.new_empty(x.shape[:-1])
        native.norm(x, None, weight, eps, None, normed, scale)
        ctx.save_for_backward(x, weight, scale)
        ctx.native = native
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        ctx.native.norm_backward(grad.contiguous(), None, x, scale, weight, grad_x, None, grad_weight)
        return grad_x, grad_weight, None, None


class _NativeAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float, native: TrainingKernels
    ) -> tuple[Tensor, Tensor]:
        total, normed, scale = torch.empty_like(x), torch.empty_like(delta), x.new_empty(x.shape[:-1])
        native.norm(x, delta, weight, eps, total, normed, scale)
        ctx.save_for_backward(total, weight, scale)
        ctx.native = native
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, stream: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        total, weight, scale = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(total), torch.empty_like(weight)
        grad_delta = torch.empty_like(total, dtype=torch.bfloat16)
        stream, grad = stream.contiguous(), grad.contiguous()
        ctx.native.norm_backward(grad, stream, total, scale, weight, grad_x, grad_delta, grad_weight)
        return grad_x, grad_delta, grad_weight, None, None


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (arXiv 2002.05202)."""
    return functional.silu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu_reference` in the dtype of both."""
    if native := native_for(gate, up, width=gate.shape[-1]):
        return _NativeSwiGLU.apply(gate, up, native)  # type: ignore[no-untyped-call, no-any-return]
    return swiglu_reference(gate, up)


class _NativeSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, native: TrainingKernels) -> Tensor:
        product = torch.empty_like(gate)
        width = gate.shape[-1]
        native.swiglu(gate.view(-1, width), up.view(-1, width), product)
        ctx.save_for_backward(gate, up)
        ctx.native = native
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        width = gate.shape[-1]
        gate, up = gate.view(-1, width), up.view(-1, width)
        ctx.native.swiglu_backward(gate, up, grad.contiguous(), grad_gate, grad_up, None)
        return grad_gate, grad_up, None


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim/2]) of each head by their angles (arXiv 2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_reference` for x [batch, seq, heads, head_dim] and cos, sin [batch or 1, seq, 1, head_dim / 2]."""
    if native := native_for(x, width=x.shape[-1] // 2):
        return _NativeRotate.apply(x, cos, sin, native)  # type: ignore[no-untyped-call, no-any-return]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if torch.compiler.is_compiling():
        return rotate_reference(x, cos, sin)
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, sign=1)
    turned: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, sign=-1), None, None


class _NativeRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, native: TrainingKernels) -> Tensor:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.native = native
        turned = torch.empty_like(x)
        native.turn(x, cos, sin, 1, turned)
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        turned = torch.empty_like(grad, memory_format=torch.contiguous_format)
        ctx.native.turn(grad.contiguous(), cos, sin, -1, turned)
        return turned, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    turned = torch.empty_like(x)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    return turned
