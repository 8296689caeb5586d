"""Gradients of several processes: summed once per global batch, and measured and scaled where each piece lies.

Shards come out of the backward pass summed over the ranks that they are cut over (`shard.py`). What is left is to sum
them over the copies, and to sum what every rank has whole over all ranks that saw different tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from liuyi.kernels.training import takes_gradient, training_kernels
from liuyi.train.parallel.shard import WHOLE_IN_MEMORY
from liuyi.train.world import World

BUCKET_BYTES = 64 << 20
"""Gradients travel together up to this size: few enough messages, and little memory besides."""


def local(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this process holds, not a copy; all of it where it is not cut up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, piece: Tensor) -> Tensor:
    """A tensor laid out as another of its shape, of which this process holds `piece`."""
    if not isinstance(tensor, DTensor):
        return piece
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], world: World) -> None:
    """Sum the gradients over the ranks that hold the same piece of the same parameter but saw other tokens."""
    if world.mesh is None:
        return
    assert world.seen is not None
    whole: list[Tensor] = []
    cut: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (cut if _is_cut(parameter) else whole).append(local(parameter.grad))
    for grads, mesh in ((cut, world.mesh["replicate"]), (whole, world.seen)):
        if mesh.size() > 1:
            for bucket in _buckets(grads):
                _sum_together(bucket, mesh.get_group(), world)


def _is_cut(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor) and not {"shard", WHOLE_IN_MEMORY}.isdisjoint(
        parameter.device_mesh.mesh_dim_names or ()
    )


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, together up to `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (size + grad.nbytes > BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def _sum_together(bucket: list[Tensor], group: dist.ProcessGroup, world: World) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in bucket])
    with world.waiting():
        dist.all_reduce(flat, group=group)
    pieces = torch.split(flat, [grad.numel() for grad in bucket])
    for grad, summed in zip(bucket, pieces, strict=True):
        grad.copy_(summed.view_as(grad))


@torch.no_grad()
def gradient_norm(grads: Sequence[Tensor], world: World) -> float:
    """Length of the whole gradient, the same bits on every rank."""
    if world.mesh is None:
        return _length(grads)
    norms = torch.stack(torch._foreach_norm([local(grad) for grad in grads])) if grads else torch.zeros(1)
    copies = torch.tensor([float(_copies(grad, world)) for grad in grads] or [1.0], dtype=torch.float64)
    squares = norms.double().cpu().square() / copies
    return math.sqrt(sum(world.gather(squares.sum().item())))


def _length(grads: Sequence[Tensor]) -> float:
    native = training_kernels()
    taken = [grad for grad in grads if native and takes_gradient(grad)]
    together = float(nn.utils.get_total_norm([grad for grad in grads if not (native and takes_gradient(grad))]))
    return math.sqrt((native.squares(taken) if native else 0.0) + together * together)


def _copies(grad: Tensor, world: World) -> int:
    """How many ranks hold this rank's piece."""
    pieces = 1
    if isinstance(grad, DTensor):
        for dimension, placement in enumerate(grad.placements):
            if not isinstance(placement, Replicate):
                pieces *= grad.device_mesh.size(dimension)
    return world.size // pieces
