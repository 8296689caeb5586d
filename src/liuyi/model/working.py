"""Weights in the dtype that they are multiplied in, kept beside the float32 ones that are trained.

    keep_working_copies(model, torch.bfloat16)
    functional.linear(x, in_dtype(layer.weight, x.dtype))

A copy is made when its weight has changed, rather than for each product: once a step, or by the optimiser in the pass
that changes the weight. What counts as a change is PyTorch's own count of writes to a tensor.

Functions of copies give gradients in the dtype of the copies. autograd turns them into the weight's `grad_dtype`, which
is the weight's own dtype unless `train/one_pass.py` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class WorkingCopy:
    """A copy of a weight, times a number, in memory of another dtype, and which state of the weight it is of."""

    def __init__(self, values: Tensor, scale: float = 1.0) -> None:
        self.values, self.scale = values, scale
        self._is_looked_up = self._is_written_out = False
        self._gradient: Tensor | None = None
        self._state = (-1, 0)

    def of(self, weight: Tensor) -> Tensor:
        """The copy, made anew if the weight has changed."""
        if self._state != _state(weight):
            self.values.copy_(weight.detach() if self.scale == 1.0 else weight.detach() * self.scale)
            self._state = _state(weight)
        return self.values

    def was_written(self, weight: Tensor) -> None:
        """Say that the copy is that of the weight as it is now."""
        self._state = _state(weight)

    def will_be_looked_up(self, weight: Tensor) -> None:
        """Say that rows of the weight are taken. Where its gradient stays as made, that is one tensor of which nobody
        else makes a sum: theirs are then added to it in place."""
        self._is_looked_up = weight.grad_dtype is None
        if not self._is_written_out:
            weight.register_post_accumulate_grad_hook(_write_out)  # type: ignore[no-untyped-call]
            self._is_written_out = True

    def lend_gradient(self, gradient: Tensor) -> None:
        """Of the weight, before autograd has it: rows that are looked up may add theirs."""
        self._gradient = gradient if self._is_looked_up else None

    def borrowed_gradient(self) -> Tensor | None:
        """What was lent, once."""
        gradient, self._gradient = self._gradient, None
        return gradient


def _state(weight: Tensor) -> tuple[int, int]:
    """Changes when somebody writes to the weight, or gives it other memory, which is not counted as a write."""
    return weight._version, weight.data_ptr()


def keep_working_copies(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep a copy in `dtype` of each trained matrix that has another one; of what is laid out over processes, none.

    Copies of neighbours lie side by side, so that matrices with the same input can be one.
    """
    matrices = [
        parameter
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter and parameter.requires_grad and parameter.ndim >= 2
    ]
    matrices = [matrix for matrix in matrices if matrix.dtype != dtype]
    if not matrices:
        return
    memory = torch.empty(sum(map(Tensor.numel, matrices)), dtype=dtype, device=matrices[0].device)
    for matrix, values in zip(matrices, torch.split(memory, [matrix.numel() for matrix in matrices]), strict=True):
        # `data`, for each has its own count of writes: autograd would take one for a change of all.
        matrix.working_copy = WorkingCopy(values.view_as(matrix).data)  # type: ignore[attr-defined]


def working_copy(weight: Tensor) -> WorkingCopy | None:
    """The copy that is kept of a weight, if one is."""
    return getattr(weight, "working_copy", None)


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight.to(dtype)`, from the copy where one is kept."""
    kept = working_copy(weight)
    if kept is None or kept.values.dtype != dtype or torch.compiler.is_compiling():
        return weight.to(dtype)
    with torch.no_grad():
        values = kept.of(weight)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return values
    copied: Tensor = _Copied.apply(weight, values)  # type: ignore[no-untyped-call]
    return copied


def rows(weight: Tensor, tokens: Tensor) -> Tensor:
    """`weight[tokens]`. Where a copy is kept, its gradient is one of these rows alone: where the weight is the head's
    too, they are added into the head's gradient, rather than a second matrix of that size."""
    learns = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    if not learns or (kept := working_copy(weight)) is None or weight.device.type != "cpu":
        return functional.embedding(tokens, weight)
    taken: Tensor = _Rows.apply(weight, tokens, kept)  # type: ignore[no-untyped-call]
    return taken


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, kept: WorkingCopy) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape, ctx.kept = weight.shape, kept
        kept.will_be_looked_up(weight)
        return functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (tokens,) = ctx.saved_tensors
        numbers, places = torch.unique(tokens, return_inverse=True)
        summed = grad.new_zeros(len(numbers), ctx.shape[1])
        summed.index_add_(0, places.flatten(), grad.flatten(0, -2))
        if (of_head := ctx.kept.borrowed_gradient()) is not None:
            of_head[numbers] = summed.add_(of_head[numbers]).to(of_head.dtype)
            return None, None, None
        grad_rows = torch.sparse_coo_tensor(numbers[None], summed, ctx.shape, is_coalesced=True, check_invariants=False)
        return grad_rows, None, None


def _write_out(weight: Tensor) -> None:
    """Give a weight of which nothing but rows was used a gradient like any other's."""
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()


def joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """The copies of these matrices as one, [all rows, columns], where they are kept side by side; else None."""
    kept = [working_copy(weight) for weight in weights]
    columns = weights[0].shape[-1]
    end = 0
    for copy, weight in zip(kept, weights, strict=True):
        if copy is None or copy.values.dtype != dtype or weight.ndim != 2 or weight.shape[1] != columns:
            return None
        values = copy.of(weight.detach())
        if end and values.data_ptr() != end:
            return None
        end = values.data_ptr() + values.nbytes
    assert kept[0] is not None
    return kept[0].values.as_strided((sum(weight.shape[0] for weight in weights), columns), (columns, 1))


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
