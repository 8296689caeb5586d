"""A layer of the decoder as one function, whose kernels follow one another without PyTorch between them.

What Python and PyTorch do around thirty layers of small products is a sixth of a training step, during which all cores
but one wait. The formula is `Block.forward` of `model/decoder.py` without this, and gives the same bits.

It does where a layer is a plain one: bfloat16 on a CPU with a matrix unit, weights that are all trained and have
working copies, attention without biases and norms of its own, whole rows, and nobody who looks on at a part of it.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liuyi.kernels.training import LayerGradients, LayerInputs, LayerShape, TrainingKernels
from liuyi.model.attention import CausalMask
from liuyi.model.fused import is_stream, native_for
from liuyi.model.joined import is_watched, plain_weights
from liuyi.model.working import joined

if TYPE_CHECKING:
    from liuyi.model.decoder import MLP, Attention, RMSNorm


def joined_layer(
    x: Tensor,
    attention: Attention,
    mlp: MLP,
    norms: tuple[RMSNorm, RMSNorm],
    dtype: torch.dtype,
    rope: tuple[Tensor, Tensor],
    mask: CausalMask,
) -> Tensor | None:
    """What a layer of these parts makes of x [batch, seq, hidden]; None where they are not such as this does."""
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    weights = plain_weights((*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    if weights is None or attention.q_norm is not None or any(map(is_watched, (attention, mlp, *norms))):
        return None
    if dtype != torch.bfloat16 or mask.first or not all(is_stream(x, norm.weight) for norm in norms):
        return None
    if attention.head_dim % 32 or weights[4].shape[0] % 32 or not x.numel():
        return None
    native = native_for(width=x.shape[-1])
    if native is None or not native.has_amx:
        return None
    matrices = [joined(part, dtype) for part in (weights[:3], weights[3:4], weights[4:6], weights[6:])]
    if any(matrix is None for matrix in matrices):
        return None
    cos, sin = (angles.float().contiguous() for angles in rope)
    batch, seq, hidden = x.shape
    heads, kv_heads = (weight.shape[0] // attention.head_dim for weight in weights[:2])
    angle_rows = cos.numel() // cos.shape[-1]
    shape = LayerShape(
        batch, seq, hidden, weights[4].shape[0], heads, kv_heads, attention.head_dim, attention.window or 0, angle_rows,
        *(norm.eps for norm in norms),
    )  # fmt: skip
    made: Tensor = _NativeLayer.apply(  # type: ignore[no-untyped-call]
        x, shape, native, (cos, sin, mask.starts), matrices, *(norm.weight for norm in norms), *weights
    )
    return made


_of_thread = threading.local()


class _NativeLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shape: LayerShape,
        native: TrainingKernels,
        where: tuple[Tensor, Tensor, Tensor | None],
        matrices: list[Tensor],
        attention_norm: Tensor,
        mlp_norm: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        needed = native.layer_bytes(shape)
        ctx.scratch = _scratch(max(needed.forward, needed.backward))
        qkv, output, gate_up, down = matrices
        inputs = x, *where, attention_norm, qkv, output, mlp_norm, gate_up, down
        kept, out = torch.empty(needed.kept, dtype=torch.uint8), torch.empty_like(x)
        native.layer(shape, _places(LayerInputs, inputs), kept, ctx.scratch, out)
        ctx.save_for_backward(kept, *inputs)
        ctx.shape, ctx.native = shape, native
        ctx.rows = [weight.shape[0] for weight in weights]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, *inputs = ctx.saved_tensors
        x, _, _, _, attention_norm, qkv, output, mlp_norm, gate_up, down = inputs
        grad_x, grad_attention_norm, grad_mlp_norm = map(torch.empty_like, (x, attention_norm, mlp_norm))
        # In one piece of memory, for the search for large ones takes long.
        matrices = qkv, output, gate_up, down
        pieces = torch.split(qkv.new_empty(sum(map(Tensor.numel, matrices))), [matrix.numel() for matrix in matrices])
        grad_qkv, grad_output, grad_gate_up, grad_down = map(Tensor.view_as, pieces, matrices)
        grads = grad_x, grad_attention_norm, grad_qkv, grad_output, grad_mlp_norm, grad_gate_up, grad_down
        ctx.native.layer_backward(
            ctx.shape,
            _places(LayerInputs, inputs),
            kept,
            grad.contiguous(),
            ctx.scratch,
            _places(LayerGradients, grads),
        )
        q_k_v, gate_and_up = torch.split(grad_qkv, ctx.rows[:3]), grad_gate_up.chunk(2)
        weights = *q_k_v, grad_output, *gate_and_up, grad_down
        return grad_x, None, None, None, None, grad_attention_norm, grad_mlp_norm, *weights


def _scratch(size_bytes: int) -> Tensor:
    """Memory for what a layer does not keep, the same for all layers of a step: of its own each would leave a hole
    between what two of them keep."""
    held = getattr(_of_thread, "scratch", None)
    scratch: Tensor | None = held() if held else None
    if scratch is None or scratch.nbytes < size_bytes:
        scratch = torch.empty(size_bytes, dtype=torch.uint8)
        _of_thread.scratch = weakref.ref(scratch)
    return scratch


def _places(kind: type[Any], tensors: Any) -> Any:
    return kind(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
