"""The head under tensor parallel: every rank has all of it, and makes the logits of its share of the tokens.

    CausalLM(dtype, cross_entropy_over(world))

Dividing the vocabulary instead would have each rank make some logits of every token, and exchange maxima and sums of
each chunk on the way. So the loss stays one function of one device, and what is exchanged is a gradient of the hidden
states and one of the head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from liuyi.model.loss import IGNORED, linear_cross_entropy
from liuyi.train.lm import CrossEntropy
from liuyi.train.parallel.tensor import sum_gradient
from liuyi.train.world import World


def cross_entropy_over(world: World) -> CrossEntropy:
    """`linear_cross_entropy`, shared by the tensor ranks, all of which have the same hidden states and targets.

    Each has the whole sum, and the gradients of it.
    """
    if world.mesh is None or world.layout.tensor == 1:
        return linear_cross_entropy
    return partial(_shared, world, world.mesh.get_group("tensor"))


def _shared(world: World, group: ProcessGroup, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    own = (targets != IGNORED).nonzero().squeeze(1)[world.tensor_rank :: world.layout.tensor]
    # Others' tokens have no gradient here until all ranks' are summed.
    some = sum_gradient(hidden, group).index_select(0, own)
    part = linear_cross_entropy(some, sum_gradient(weight, group), targets[own])
    total: Tensor = _SumValue.apply(part, group)  # type: ignore[no-untyped-call]
    return total


class _SumValue(torch.autograd.Function):
    """The sum over the group, of which each rank's part has the gradient that the sum has."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
