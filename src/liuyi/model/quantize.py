"""Weights in few bits: int8, or int4, with a scale for every group of columns.

    small = quantize(model, "int8")
    save_model(folder, small)          # a quarter of the bytes; load_model reads it back
    small = quantize(model, "int4", texts)     # rounded so that what it makes of such texts changes least

int8 is symmetric: −127…127 times a scale for 64 to 256 columns (`int8_group`), which are rotated before they are
rounded (`rotate`), and back when they are widened: an outlier among them costs the others less. int4 is asymmetric:
0…15 times a scale, plus a minimum, for 32 columns (`int4.py`); its embedding and head are int8. Scales and minima are
bfloat16, so that what a checkpoint holds is what the native kernels multiply with, bit for bit
(`kernels/native/linear.h`, whose arithmetic this is). In torch the matrices are widened once when a model is loaded and
multiplied as any others: PyTorch's own int8 product for CPUs takes bfloat16 activations only, is slower than a float32
product from a few rows on, and crashed on small shapes.

`docs/decisions/inference.md` has what each format costs in accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.kernels.parts import INT4_GROUP, INT8_BLOCK, int8_group
from liuyi.model.decoder import Decoder, Embedding, Linear
from liuyi.model.int4 import fitted, nearest, packed, unpacked
from liuyi.model.moments import moments

QUANTIZATION = "quantization.json"

Format = Literal["int8", "int4"]

_INT8: dict[str, Any] = {
    "format": "int8",
    "scheme": "symmetric",
    "rotation": "blocks mixed, hadamard-8x8 each",
    "block_columns": INT8_BLOCK,
    "most_group_columns": 4 * INT8_BLOCK,
    "scales": "bfloat16",
}
_INT4: dict[str, Any] = {
    "format": "int4",
    "scheme": "asymmetric",
    "group_columns": INT4_GROUP,
    "scales": "bfloat16",
    "embedding": _INT8,
}
FORMATS: dict[Format, dict[str, Any]] = {"int8": _INT8, "int4": _INT4}
"""What `quantization.json` says."""

SUFFIXES = ("_scale", "_minimum")
"""What the names of tensors beside a quantised `weight` end in."""


class QuantMatrix(nn.Module):
    """A matrix [rows, columns] in numbers of few bits, and beside it the matrix that they stand for."""

    weight: Tensor
    weight_scale: Tensor
    wide: Tensor

    def __init__(self, rows: int, columns: int, fmt: Format) -> None:
        super().__init__()
        self.rows, self.columns, self.format = rows, columns, fmt
        if fmt == "int8":
            depth = -(-columns // INT8_BLOCK) * INT8_BLOCK
            numbers, groups = torch.empty(rows, depth, dtype=torch.int8), depth // int8_group(columns)
        else:
            numbers, groups = torch.empty(rows, (columns + 1) // 2, dtype=torch.uint8), -(-columns // INT4_GROUP)
            self.register_buffer("weight_minimum", torch.empty(rows, groups, dtype=torch.bfloat16))
        self.register_buffer("weight", numbers)
        self.register_buffer("weight_scale", torch.empty(rows, groups, dtype=torch.bfloat16))
        self.register_buffer("wide", torch.empty(0), persistent=False)

    def fill(self, weight: Tensor, moment: Tensor | None = None) -> None:
        """Quantise a matrix [rows, columns], int4 for inputs whose sum of x·xᵀ is `moment`, where that is known."""
        if self.format == "int8":
            self.weight, self.weight_scale = _to_int8(weight.float())
            return
        rounded = nearest(weight.float()) if moment is None else fitted(weight.float(), moment)
        numbers, self.weight_scale, self.weight_minimum = rounded
        self.weight = packed(numbers)

    def widen(self, dtype: torch.dtype) -> None:
        """Make the matrix to multiply with."""
        if self.format == "int8":
            scales = self.weight_scale.float()
            groups = self.weight.float().view(*scales.shape, -1) * scales[:, :, None]
            wide = rotate(groups).flatten(1)[:, : self.columns]
        else:
            wide = unpacked(self.weight, self.columns).float() * _spread(self.weight_scale, INT4_GROUP, self.columns)
            wide += _spread(self.weight_minimum, INT4_GROUP, self.columns)
        self.wide = wide.to(dtype)

    def widened(self) -> Tensor:
        """The matrix that the numbers stand for."""
        return self.wide

    def times(self, x: Tensor) -> Tensor:
        """x·Wᵀ for x [..., columns], in the dtype of x."""
        return functional.linear(x, self.wide.to(x.dtype))


class QuantLinear(QuantMatrix):
    """A `Linear` whose weight is quantised."""

    def __init__(self, rows: int, columns: int, fmt: Format, bias: bool) -> None:
        super().__init__(rows, columns, fmt)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.wide.to(x.dtype), bias)


class QuantEmbedding(QuantMatrix):
    """An `Embedding` whose weight is quantised; also the matrix of the logits where it is tied."""

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.wide)


def quantize(model: Decoder, fmt: Format = "int8", texts: Sequence[Sequence[int]] = ()) -> Decoder:
    """A copy of the model with every matrix quantised; norms and biases stay as they are.

    int4 is fitted to `texts` (token ids), where there are any. Raises ModelError if the model is quantised already, and
    for texts with int8, which needs none.
    """
    if quantization_of(model) is not None:
        raise ModelError("the model is quantised already", hint="quantise the one that it came from")
    if texts and fmt != "int4":
        raise ModelError(f"{fmt} is not fitted to texts", hint="int4 is")
    small = copy.deepcopy(model)
    with_shells(small, fmt)
    weights = dict(model.named_modules())
    for name, module in _matrices(small):
        source = weights[name]
        module.fill(source.weight.detach())
        if isinstance(module, QuantLinear) and module.bias is not None:
            module.bias.data.copy_(source.bias.detach())
    if texts:
        matrices = dict(_matrices(small))
        for layer in moments(model, texts):
            for name, moment in layer.items():
                matrices[name].fill(weights[name].weight.detach(), moment)
    widen(small, model.dtype)
    return small.requires_grad_(False)


def quantization_of(model: Decoder) -> Format | None:
    """The format of the model's matrices; None if they are not quantised."""
    return next((module.format for name, module in _matrices(model) if name.startswith("model.layers.")), None)


def widened_copy(model: Decoder) -> Decoder:
    """The model that a quantised one stands for, in float32."""
    with torch.device("meta"):
        wide = Decoder(model.config)
    matrices = {f"{name}.weight": module.widened().float() for name, module in _matrices(model)}
    kept = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    wide.load_state_dict({name: tensor.clone() for name, tensor in (kept | matrices).items()}, assign=True)
    wide.reset_buffers(model.device)
    return wide


def with_shells(model: Decoder, fmt: Format) -> None:
    """Put unfilled quantised matrices where the model has others."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                kind: Format = "int8" if name == "lm_head" else fmt
                bias = child.bias is not None
                setattr(parent, name, QuantLinear(child.out_features, child.in_features, kind, bias))
            elif isinstance(child, Embedding):
                setattr(parent, name, QuantEmbedding(child.vocab_size, child.hidden_size, "int8"))


def widen(model: Decoder, dtype: torch.dtype) -> None:
    """Make what a filled quantised model multiplies with."""
    for _, module in _matrices(model):
        module.widen(dtype)


def format_in(values: Any) -> Format | None:
    """The format that `quantization.json` describes; None for one that there is not."""
    return next((name for name in get_args(Format) if FORMATS[name] == values), None)


def weight_error(model: Decoder, small: Decoder) -> dict[str, float]:
    """Root-mean-square error of each matrix relative to its own size: the mean over the matrices and the largest."""
    errors = []
    wide = dict(model.named_modules())
    for name, module in _matrices(small):
        exact = wide[name].weight.detach().float()
        errors.append(float((module.widened().float() - exact).norm() / exact.norm()))
    return {"relative_rms_error": sum(errors) / len(errors), "relative_rms_error_max": max(errors)}


def _matrices(model: Decoder) -> Iterator[tuple[str, QuantMatrix]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantMatrix))


def _spread(values: Tensor, group: int, columns: int) -> Tensor:
    return values.float().repeat_interleave(group, dim=1)[:, :columns]


def rotate(groups: Tensor) -> Tensor:
    """Groups [..., columns] of one to four blocks of 64, mixed, and then H·Xᵀ·H / 8 for every block as an 8×8 matrix X,
    H being Hadamard's matrix of order 8.

    Orthogonal and its own inverse. The sums are taken in the order of `kernels/native/linear_rotate.h`, so that both
    round to the same numbers. Rotation before rounding is from QuaRot (arXiv 2404.00456).
    """
    x = _mix(groups).reshape(-1, 8, 8)
    for _ in range(2):
        for step in (4, 2, 1):
            first, second = x.view(-1, 4 // step, 2, step, 8).unbind(2)
            x = torch.stack((first + second, first - second), dim=2).view(-1, 8, 8)
        x = x.transpose(1, 2).contiguous()
    # The second transposition is one too many.
    return x.transpose(1, 2).reshape(groups.shape) * 0.125


def _mix(groups: Tensor) -> Tensor:
    """Of three or four blocks of a group what twice their mean leaves of each; of two, sum and difference over √2."""
    blocks = groups.reshape(*groups.shape[:-1], -1, INT8_BLOCK).unbind(-2)
    if len(blocks) == 1:
        return groups
    if len(blocks) == 2:
        mixed = [(blocks[0] + blocks[1]) * 0.5**0.5, (blocks[0] - blocks[1]) * 0.5**0.5]
    else:
        total = blocks[0] + blocks[1]
        for block in blocks[2:]:
            total = total + block
        twice = total * (2 / len(blocks))
        mixed = [block - twice for block in blocks]
    return torch.cat(mixed, dim=-1)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales. A scale is the largest magnitude / 127, rounded up to bfloat16; 0 for zeros."""
    rows, columns = weight.shape
    groups = rotate(functional.pad(weight, (0, -columns % INT8_BLOCK)).view(rows, -1, int8_group(columns)))
    exact = groups.abs().amax(dim=2) / 127
    scale = ((exact.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)
    numbers = (groups / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]).round().to(torch.int8)
    return numbers.view(rows, -1), scale.bfloat16()
