"""Matrices in int4: 0…15 times a scale, plus a minimum, for every 32 columns; both bfloat16.

    numbers, scales, minima = nearest(weight)                 # each number by itself
    numbers, scales, minima = fitted(weight, x.T @ x)         # the product with inputs like x

`fitted` is GPTQ (arXiv 2210.17323): columns are rounded one after the other, and what a column's rounding adds to the
products with such inputs is taken out again, as far as possible, by the columns that are still to be rounded. A group's
range is that of what is left of it when its turn comes. `docs/decisions/inference.md` has what that is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from liuyi.kernels.parts import INT4_GROUP

_DAMPING = 0.01
"""Of the mean square of all inputs, added to that of each: GPTQ's, without which rare inputs make nonsense."""

Int4 = tuple[Tensor, Tensor, Tensor]
"""Numbers uint8 [rows, columns], scales and minima bfloat16 [rows, groups]."""


def nearest(weight: Tensor) -> Int4:
    """The numbers nearest to a matrix [rows, columns] in float32."""
    numbers, scale, minimum = _round(weight)
    return numbers, scale.bfloat16(), minimum.bfloat16()


def fitted(weight: Tensor, moment: Tensor) -> Int4:
    """The numbers that change W·x least for inputs like some whose sum of x·xᵀ is `moment` [columns, columns].

    Both are float32. Inputs that are all zero say nothing: then the nearest.
    """
    if not moment.diagonal().any():
        return nearest(weight)
    rows, columns = weight.shape
    inverse = _inverse_factor(moment)
    left = weight.clone()
    numbers = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    scales, minima = [], []
    for first in range(0, columns, INT4_GROUP):
        last = min(first + INT4_GROUP, columns)
        _, scale, minimum = _round(left[:, first:last])
        scale, minimum = scale[:, 0], minimum[:, 0]
        errors = torch.empty(rows, last - first, device=weight.device)
        for column in range(first, last):
            wanted = left[:, column]
            number = _numbers(wanted, scale, minimum)
            error = (wanted - (scale * number + minimum)) / inverse[column, column]
            left[:, column:last] -= error[:, None] * inverse[column, column:last]
            numbers[:, column], errors[:, column - first] = number.to(torch.uint8), error
        left[:, last:] -= errors @ inverse[first:last, last:]
        scales.append(scale)
        minima.append(minimum)
    return numbers, torch.stack(scales, dim=1).bfloat16(), torch.stack(minima, dim=1).bfloat16()


def packed(numbers: Tensor) -> Tensor:
    """Numbers [rows, columns], two to a byte: [rows, ⌈columns / 2⌉], the first in the low half."""
    even = functional.pad(numbers, (0, numbers.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4


def unpacked(numbers: Tensor, columns: int) -> Tensor:
    """What `packed` packed."""
    return torch.stack((numbers & 15, numbers >> 4), dim=2).flatten(1)[:, :columns]


def _round(weight: Tensor) -> Int4:
    """Numbers, scales and minima, both as float32.

    The range of a group shrinks around its middle in steps of 3 %, and the one with the least squared error stays: one
    outlier less accurate can leave all others more so.
    """
    rows, columns = weight.shape
    # The rest of the last group repeats its last column, so that it changes no range.
    padded = functional.pad(weight[None], (0, -columns % INT4_GROUP), mode="replicate")[0]
    counted = functional.pad(torch.ones(columns, device=weight.device), (0, -columns % INT4_GROUP))
    groups, counted = padded.view(rows, -1, INT4_GROUP), counted.view(1, -1, INT4_GROUP)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    middle = (low + high) * 0.5
    least = torch.full_like(low, torch.inf)
    best = torch.zeros(groups.shape, dtype=torch.uint8, device=weight.device)
    best_scale, best_minimum = torch.zeros_like(low), torch.zeros_like(low)
    for step in range(8):
        shrink = 1 - 0.03 * step
        minimum = (middle + (low - middle) * shrink).bfloat16().float()
        scale = ((high - low) * shrink / 15).bfloat16().float()
        numbers = _numbers(groups, scale[:, :, None], minimum[:, :, None])
        off = (scale[:, :, None] * numbers + minimum[:, :, None] - groups) * counted
        error = off.square().sum(dim=2)
        nearer = error < least
        least = torch.where(nearer, error, least)
        best = torch.where(nearer[:, :, None], numbers.to(torch.uint8), best)
        best_scale = torch.where(nearer, scale, best_scale)
        best_minimum = torch.where(nearer, minimum, best_minimum)
    return best.view(rows, -1)[:, :columns], best_scale, best_minimum


def _numbers(weight: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return ((weight - minimum) * torch.where(scale > 0, 1 / scale, 0)).round().clamp(0, 15)


def _inverse_factor(moment: Tensor) -> Tensor:
    """The upper triangular U with UᵀU the inverse of the damped moment."""
    damped = moment.double()
    damped.diagonal().add_(_DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.as_tensor(torch.linalg.cholesky(inverse, upper=True)).float()
