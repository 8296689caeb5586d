"""Frozen matrices in four bits, to train adapters beside: QLoRA's NormalFloat (arXiv 2305.14314).

    base = Nf4Linear.of(linear)          # 4.13 bits a weight; widened for every product, and again for its gradient

A block of 64 numbers is divided by its largest magnitude and rounded to the nearest of sixteen values, the quantiles
of a normal distribution. The magnitudes, less their mean, are rounded themselves ("double quantisation"): 256 at a time
to the 8-bit values of arXiv 2110.02861. The four-bit numbers are those of `bitsandbytes`, and so are the magnitudes but
for the few that lie half-way between two values.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.model.decoder import Linear

BLOCK, OUTER_BLOCK = 64, 256

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of QLoRA's appendix E."""


class Nf4Linear(nn.Module):
    """A `Linear` whose weight is four bits a number and is not trained; it is widened in the dtype of x."""

    codes: Tensor
    """uint8, two numbers a byte, the first in the high half."""
    magnitudes: Tensor
    """uint8, a block's largest magnitude less `mean`, as a number of the dynamic map."""
    outer: Tensor
    """float32, what 256 magnitudes are multiplied with."""
    mean: Tensor
    """float32, the mean magnitude."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias: nn.Parameter | None = None

    @classmethod
    def of(cls, linear: Linear) -> Nf4Linear:
        """The layer with its weight rounded; its bias is shared."""
        small = cls(linear.in_features, linear.out_features)
        codes, magnitudes = quantize_nf4(linear.weight.detach())
        mean = magnitudes.mean()
        numbers, outer = _to_map(magnitudes - mean)
        for name, value in (("codes", codes), ("magnitudes", numbers), ("outer", outer), ("mean", mean)):
            small.register_buffer(name, value)
        small.bias = linear.bias
        return small

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight as it is kept."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.magnitudes, self.outer, self.mean))

    def widened(self) -> Tensor:
        """The matrix that the numbers stand for, float32 [out_features, in_features]."""
        code = dynamic_map().to(self.codes.device)
        blocks = self.outer.repeat_interleave(OUTER_BLOCK)[: len(self.magnitudes)]
        magnitudes = code[self.magnitudes.long()] * blocks + self.mean
        numbers = torch.stack((self.codes >> 4, self.codes & 15), dim=1).flatten().long()
        size = self.out_features * self.in_features
        values = torch.tensor(NF4, device=self.codes.device)[numbers[:size]]
        return (values * magnitudes.repeat_interleave(BLOCK)[:size]).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x·Wᵀ that keeps no widened matrix for the gradient, but widens it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.widened().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.widened().to(grad.dtype), None


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 with two numbers a byte, and each block's largest magnitude, float32."""
    flat = weight.float().flatten()
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    magnitudes = blocks.abs().amax(dim=1)
    scaled = blocks / magnitudes.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    numbers = _nearest(scaled.flatten(), torch.tensor(NF4, device=weight.device))
    return (numbers[::2] << 4 | numbers[1::2])[: (len(flat) + 1) // 2], magnitudes


@functools.cache
def dynamic_map() -> Tensor:
    """The 256 values of a signed 8-bit number with an exponent of up to seven bits, in rising order."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += [*middles, *(-middle for middle in middles)]
    return torch.tensor(sorted(values))


def _to_map(values: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the dynamic map, and the largest magnitude of each 256 values."""
    blocks = functional.pad(values, (0, -len(values) % OUTER_BLOCK)).view(-1, OUTER_BLOCK)
    outer = blocks.abs().amax(dim=1)
    scaled = blocks / outer.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return _nearest(scaled.flatten(), dynamic_map().to(values.device))[: len(values)], outer


def _nearest(values: Tensor, code: Tensor) -> Tensor:
    """The number of the nearest of `code`, uint8."""
    return torch.bucketize(values, (code[:-1] + code[1:]) / 2).to(torch.uint8)
