"""The native kernels of training, on torch's tensors and torch's threads.

    native = training_kernels()          # None where there are none
    native.swiglu(gate, up, out)

Each function's formula is a plain one in `model/fused.py`, `model/loss.py`, `model/attention.py`, `model/products.py`
or `train/one_pass.py`, which also choose between the two. Activations are contiguous bfloat16 tensors in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from liuyi.kernels.library import KernelsAbsent, Library, instruction_set_number, kernels

LANES = 16
"""Widths of rows and numbers of elements are multiples of it."""


class AdamWSettings(Structure):
    """As in `native/training.h`."""

    _fields_ = (
        *((name, c_double) for name in ("beta1", "beta2")),
        *((name, c_float) for name in ("lr", "eps", "decay", "grad_scale")),
    )


class Gradient(Structure):
    """Where a gradient lies, in float32 or in bfloat16; as in `native/training.h`."""

    _fields_ = (("grad", c_void_p), ("rounded", c_void_p), ("count", c_int64))

    @classmethod
    def of(cls, grad: Tensor) -> Gradient:
        """Of one that `takes_gradient`."""
        place = grad.data_ptr()
        return cls(place, None, grad.numel()) if grad.dtype == torch.float32 else cls(None, place, grad.numel())


class AdamWTensor(Structure):
    """As in `native/training.h`."""

    _fields_ = (
        ("settings", AdamWSettings),
        ("gradient", Gradient),
        *((name, c_void_p) for name in ("weight", "first", "second", "step", "copy")),
    )


class Sums(Structure):
    """Sums of all words before and after, modulo 2⁶⁴."""

    _fields_ = (("before", c_uint64), ("after", c_uint64))


class FlashShape(Structure):
    """As in `native/flash.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("batch", "seq", "heads", "kv_heads", "head_dim", "window")),
        ("scale", c_float),
        ("q_stride", c_int64),
        ("kv_stride", c_int64),
    )


class LayerShape(Structure):
    """As in `native/training_layer.h`."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in ("batch", "seq", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "window")
        ),
        ("angle_rows", c_int64),
        ("attention_eps", c_float),
        ("mlp_eps", c_float),
    )


class LayerInputs(Structure):
    """Where they lie; as in `native/training_layer.h`."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            "x", "cosines", "sines", "starts", "attention_norm", "qkv", "output", "mlp_norm", "gate_up", "down",
        )
    )  # fmt: skip


class LayerGradients(Structure):
    """Where they lie; as in `native/training_layer.h`."""

    _fields_ = tuple(
        (name, c_void_p) for name in ("x", "attention_norm", "qkv", "output", "mlp_norm", "gate_up", "down")
    )


class LayerBytes(Structure):
    """As in `native/training_layer.h`."""

    _fields_ = (("kept", c_int64), ("forward", c_int64), ("backward", c_int64))


def training_kernels() -> TrainingKernels | None:
    """The kernels, or None where the library, its instructions or torch's OpenMP threads are not there."""
    try:
        return _open(kernels())
    except KernelsAbsent:
        return None


@cache
def _open(library: Library) -> TrainingKernels:
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        raise KernelsAbsent("torch's threads are not OpenMP's, so training has no native kernels") from None
    try:
        return TrainingKernels(library, parallel)
    except AttributeError as error:
        raise KernelsAbsent(f"the native library is of another version: {error}", hint="install Liuyi again") from None


def takes_gradient(grad: Tensor) -> bool:
    """Whether `adamw` and `squares` take it."""
    plain = type(grad) is Tensor and grad.device.type == "cpu" and grad.is_contiguous()
    return plain and grad.dtype in (torch.float32, torch.bfloat16) and grad.numel() % LANES == 0


class TrainingKernels:
    """Every argument that is `None` in C is None here; see `native/training.h` and `native/flash.h` for each."""

    def __init__(self, library: Library, parallel: Any) -> None:
        functions = library.functions
        functions.liuyi_training_open.argtypes = (c_void_p, c_int)
        functions.liuyi_training_open(ctypes.cast(parallel, c_void_p), instruction_set_number(library.instruction_set))
        self.has_amx = library.instruction_set == "amx"
        pointer, size, count, number = c_void_p, c_int, c_int64, c_float
        self._norm = self._declare(library, "norm", *(pointer,) * 3, number, count, size, *(pointer,) * 3)
        self._norm_backward = self._declare(library, "norm_backward", *(pointer,) * 5, count, size, *(pointer,) * 4)
        self._add = self._declare(library, "add", pointer, pointer, count, pointer)
        self._swiglu = self._declare(library, "swiglu", pointer, pointer, count, size, count, pointer)
        self._swiglu_backward = self._declare(
            library, "swiglu_backward", *(pointer,) * 3, count, size, count, *(pointer,) * 3
        )
        self._turn = self._declare(library, "turn", *(pointer,) * 3, count, size, size, count, number, pointer)
        self._cross_entropy = self._declare(library, "cross_entropy", *(pointer,) * 3, count, size, pointer)
        self._adamw = self._declare_scratch(library, "adamw", POINTER(AdamWTensor), size, POINTER(Sums))
        self._squares = self._declare_scratch(library, "squares", POINTER(Gradient), size, POINTER(c_double))
        if self.has_amx:
            operand = (pointer, count, size)
            self._product = self._declare_scratch(library, "product", *operand * 2, *(size,) * 3, pointer, count)
            self._attention = self._declare_scratch(library, "attention", POINTER(FlashShape), *(pointer,) * 6)
            self._attention_backward = self._declare_scratch(
                library, "attention_backward", POINTER(FlashShape), *(pointer,) * 10
            )
            layer = POINTER(LayerShape), POINTER(LayerInputs)
            self._layer = self._declare_scratch(library, "layer", *layer, *(pointer,) * 3)
            self._layer_backward = self._declare_scratch(
                library, "layer_backward", *layer, *(pointer,) * 3, POINTER(LayerGradients)
            )
            self._layer_bytes = library.functions.liuyi_training_layer_bytes
            self._layer_bytes.restype, self._layer_bytes.argtypes = None, (POINTER(LayerShape), POINTER(LayerBytes))

    @staticmethod
    def _declare(library: Library, name: str, *arguments: Any) -> Any:
        function = getattr(library.functions, f"liuyi_training_{name}")
        function.restype, function.argtypes = None, (c_int, *arguments)
        return function

    @staticmethod
    def _declare_scratch(library: Library, name: str, *arguments: Any) -> Any:
        """A function that needs memory of its own. Calling it raises MemoryError where there is none."""
        function = TrainingKernels._declare(library, name, *arguments)
        function.restype, function.errcheck = c_int, _with_memory
        return function

    def norm(
        self,
        x: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        eps: float,
        total: Tensor | None,
        out: Tensor,
        scale: Tensor,
    ) -> None:
        """total = x + delta; out = total / √(mean(total²) + eps) · weight, of which scale [rows] is the first part."""
        size = x.shape[-1]
        self._norm(
            torch.get_num_threads(), x.data_ptr(), _of(delta), weight.data_ptr(), eps, x.numel() // size, size,
            _of(total), out.data_ptr(), scale.data_ptr(),
        )  # fmt: skip

    def norm_backward(
        self,
        grad: Tensor,
        stream: Tensor | None,
        x: Tensor,
        scale: Tensor,
        weight: Tensor,
        grad_x: Tensor,
        grad_delta: Tensor | None,
        grad_weight: Tensor,
    ) -> None:
        """grad_x = stream + what the norm gives; grad_delta is the same, rounded."""
        size = x.shape[-1]
        rows = x.numel() // size
        partials = torch.empty(-(-rows // 64), size)
        self._norm_backward(
            torch.get_num_threads(), grad.data_ptr(), _of(stream), x.data_ptr(), scale.data_ptr(), weight.data_ptr(),
            rows, size, partials.data_ptr(), grad_x.data_ptr(), _of(grad_delta), grad_weight.data_ptr(),
        )  # fmt: skip

    def add(self, x: Tensor, delta: Tensor, out: Tensor) -> None:
        """out = x + delta, of which x is float32."""
        self._add(torch.get_num_threads(), x.data_ptr(), delta.data_ptr(), x.numel(), out.data_ptr())

    def swiglu(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """out = silu(gate) · up; gate and up [rows, width] may be parts of wider rows, alike."""
        rows, width = gate.shape
        self._swiglu(
            torch.get_num_threads(), gate.data_ptr(), up.data_ptr(), rows, width, gate.stride(0), out.data_ptr()
        )

    def swiglu_backward(
        self, gate: Tensor, up: Tensor, grad: Tensor, grad_gate: Tensor, grad_up: Tensor, activated: Tensor | None
    ) -> None:
        """Gradients of gate and up, which lie as these do, and what came out of them."""
        rows, width = gate.shape
        self._swiglu_backward(
            torch.get_num_threads(), gate.data_ptr(), up.data_ptr(), grad.data_ptr(), rows, width, gate.stride(0),
            grad_gate.data_ptr(), grad_up.data_ptr(), _of(activated),
        )  # fmt: skip

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor, sign: int, out: Tensor) -> None:
        """Rotate x [batch, seq, heads, head_dim] by angles [batch or 1, seq, 1, head_dim / 2], back for sign −1."""
        half = x.shape[3] // 2
        self._turn(
            torch.get_num_threads(), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), x.shape[0] * x.shape[1], x.shape[2],
            half, cos.numel() // half, sign, out.data_ptr(),
        )  # fmt: skip

    def cross_entropy(self, logits: Tensor, targets: Tensor, weights: Tensor | None, losses: Tensor) -> None:
        """losses [rows] of logits [rows, vocab], which become their gradient."""
        rows, vocab = logits.shape
        self._cross_entropy(
            torch.get_num_threads(), logits.data_ptr(), targets.data_ptr(), _of(weights), rows, vocab, losses.data_ptr()
        )

    def adamw(self, tensors: Sequence[AdamWTensor]) -> Sums:
        """One step of each of these float32 weights and their moments, and of their working copies."""
        sums = Sums()
        array = (AdamWTensor * len(tensors))(*tensors)
        self._adamw(torch.get_num_threads(), array, len(tensors), byref(sums))
        return sums

    def squares(self, grads: Sequence[Tensor]) -> float:
        """The sum of all squares of gradients, each in float32 or bfloat16."""
        found = c_double()
        array = (Gradient * len(grads))(*map(Gradient.of, grads))
        self._squares(torch.get_num_threads(), array, len(grads), byref(found))
        return found.value

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """out [rows, columns] = left · right, which may be transposed views of such matrices; needs `has_amx`."""
        self._product(
            torch.get_num_threads(), *_operand(left), *_operand(right), left.shape[0], right.shape[1], left.shape[1],
            out.data_ptr(), out.stride(0),
        )  # fmt: skip

    def attention(
        self, shape: FlashShape, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
    ) -> None:
        """Causal attention; needs `has_amx`."""
        self._attention(
            torch.get_num_threads(), byref(shape), q.data_ptr(), k.data_ptr(), v.data_ptr(), _of(starts),
            out.data_ptr(), lse.data_ptr(),
        )  # fmt: skip

    def attention_backward(
        self, shape: FlashShape, kept: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor], grad: Tensor,
        grads: tuple[Tensor, Tensor, Tensor],
    ) -> None:  # fmt: skip
        """Gradients of q, k and v; `kept` are the arguments of `attention` and its results."""
        self._attention_backward(
            torch.get_num_threads(), byref(shape), *map(_of, kept), grad.data_ptr(), *(one.data_ptr() for one in grads)
        )

    def layer_bytes(self, shape: LayerShape) -> LayerBytes:
        """What a layer keeps for its backward pass, and what each pass needs for itself; needs `has_amx`."""
        found = LayerBytes()
        self._layer_bytes(byref(shape), byref(found))
        return found

    def layer(self, shape: LayerShape, inputs: LayerInputs, kept: Tensor, scratch: Tensor, out: Tensor) -> None:
        """A layer of the decoder, as a whole; needs `has_amx`."""
        self._layer(
            torch.get_num_threads(), byref(shape), byref(inputs), kept.data_ptr(), scratch.data_ptr(), out.data_ptr()
        )

    def layer_backward(
        self,
        shape: LayerShape,
        inputs: LayerInputs,
        kept: Tensor,
        grad: Tensor,
        scratch: Tensor,
        grads: LayerGradients,
    ) -> None:
        """The gradients of its input and of its weights."""
        self._layer_backward(
            torch.get_num_threads(), byref(shape), byref(inputs), kept.data_ptr(), grad.data_ptr(), scratch.data_ptr(),
            byref(grads),
        )  # fmt: skip


def _with_memory(status: int, function: Any, _: Any) -> None:
    if status:
        raise MemoryError(f"there is no memory for what {function.__name__} keeps meanwhile")


def _operand(matrix: Tensor) -> tuple[int, int, bool]:
    """Where a matrix lies, how far its rows, or columns, are apart, and whether it is columns."""
    across = matrix.stride(1) != 1
    return matrix.data_ptr(), matrix.stride(0 if not across else 1), across


def _of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
