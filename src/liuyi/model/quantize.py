"""Weight-only int8: whole numbers from −127 to 127, and a scale for every 64 of them along a row.

    small = quantize_int8(model)
    save_model(folder, small)          # a quarter of the bytes; load_model reads it back

Activations keep their dtype. The matrices are widened once when a model is loaded and multiplied as any others, exact
to the int8 weights: PyTorch's own int8 product for CPUs takes bfloat16 activations only, is slower than a float32
product from a few rows on, and crashed on small shapes. On SmolLM2-135M's weights groups of 64 agree with float32 on
97.0 % of the next tokens, one scale for a whole row on 95.3 %.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder, Embedding, Linear

QUANTIZATION = "quantization.json"
GROUP = 64
"""Columns that share a scale; the last group of a row may be shorter."""

FORMAT = {"format": "int8", "scheme": "symmetric", "group_columns": GROUP, "scale_suffix": "_scale"}
"""What `quantization.json` says."""


class _Int8Matrix(nn.Module):
    """A matrix [rows, columns] in int8, its float32 scales [rows, groups], and beside it the matrix that they make."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.weight_scale: Tensor
        self.wide: Tensor
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(rows, -(-columns // GROUP), dtype=torch.float32))
        self.register_buffer("wide", torch.empty(0), persistent=False)

    def fill(self, weight: Tensor) -> None:
        """Quantise a matrix; a group of zeros has the scale 0."""
        rows, columns = weight.shape
        padded = functional.pad(weight.float(), (0, -columns % GROUP))
        groups = padded.view(rows, -1, GROUP)
        self.weight_scale = groups.abs().amax(dim=2) / 127
        steps = groups / self.weight_scale.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
        self.weight = steps.round().to(torch.int8).view(rows, -1)[:, :columns].contiguous()

    def widen(self, dtype: torch.dtype) -> None:
        """Make the matrix to multiply with."""
        scales = self.weight_scale.repeat_interleave(GROUP, dim=1)[:, : self.weight.shape[1]]
        self.wide = (self.weight.float() * scales).to(dtype)

    def widened(self) -> Tensor:
        """The matrix that the int8 weights stand for."""
        return self.wide

    def times(self, x: Tensor) -> Tensor:
        """x·Wᵀ for x [..., columns], in the dtype of x."""
        return functional.linear(x, self.wide.to(x.dtype))


class QuantLinear(_Int8Matrix):
    """A `Linear` whose weight is int8."""

    def __init__(self, rows: int, columns: int, bias: bool) -> None:
        super().__init__(rows, columns)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.wide.to(x.dtype), bias)


class QuantEmbedding(_Int8Matrix):
    """An `Embedding` whose weight is int8; also the matrix of the logits where it is tied."""

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.wide)


def quantize_int8(model: Decoder) -> Decoder:
    """A copy of the model with every matrix in int8; norms and biases stay as they are.

    Raises ModelError if it is quantised already.
    """
    if is_quantized(model):
        raise ModelError("the model is quantised already", hint="quantise the one that it came from")
    small = copy.deepcopy(model)
    with_int8_shells(small)
    weights = dict(model.named_modules())
    for name, module in small.named_modules():
        if isinstance(module, _Int8Matrix):
            source = weights[name]
            module.fill(source.weight.detach())
            if isinstance(module, QuantLinear) and module.bias is not None:
                module.bias.data.copy_(source.bias.detach())
    widen(small, model.dtype)
    return small.requires_grad_(False)


def is_quantized(model: Decoder) -> bool:
    """Whether the model's matrices are int8."""
    return isinstance(model.model.embed_tokens, QuantEmbedding)


def with_int8_shells(model: Decoder) -> None:
    """Put unfilled int8 matrices where the model has others."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, QuantLinear(child.out_features, child.in_features, child.bias is not None))
            elif isinstance(child, Embedding):
                setattr(parent, name, QuantEmbedding(child.vocab_size, child.hidden_size))


def widen(model: Decoder, dtype: torch.dtype) -> None:
    """Make what a filled int8 model multiplies with."""
    for module in model.modules():
        if isinstance(module, _Int8Matrix):
            module.widen(dtype)


def int8_error(model: Decoder, small: Decoder) -> dict[str, float]:
    """Root-mean-square error of each matrix relative to its own size: the mean over the matrices and the largest."""
    errors = []
    wide = dict(model.named_modules())
    for name, module in small.named_modules():
        if isinstance(module, _Int8Matrix):
            exact = wide[name].weight.detach().float()
            errors.append(float((module.widened().float() - exact).norm() / exact.norm()))
    return {"relative_rms_error": sum(errors) / len(errors), "relative_rms_error_max": max(errors)}
