"""Weights, gradients and optimiser state cut up over processes: PyTorch's FSDP2 (arXiv 2304.11277), layer by layer.

A layer's matrices are brought together just before it computes and let go after it. Vectors (norms, biases) stay whole
everywhere: they weigh nothing, and so the matrices can travel in the dtype that they are multiplied in, which gives
the bits that one process gets by rounding them itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from liuyi.model.decoder import Block
from liuyi.model.load import stored_dtype
from liuyi.train.world import World

WHOLE_IN_MEMORY = "parts"
"""The mesh dimension that shards and context parts make together: parameters are cut over both."""


def shard(model: nn.Module, world: World, compute_dtype: torch.dtype) -> None:
    """Cut up every matrix over the shards, and over the context ranks, which have the same weights besides.

    Gradients come out as sums. Embeddings and head stay together from the forward pass to the backward pass, for the
    loss multiplies by them in between. Layers go to the device one by one, and only then become float32 where they are
    not, so that no device, and no host that maps its weights from a file, ever holds the whole model in float32.
    """
    assert world.mesh is not None
    mesh = world.mesh["shard"]
    if world.layout.context > 1:
        mesh = world.mesh["shard", "context"]._flatten(WHOLE_IN_MEMORY)
    vectors = {parameter for parameter in model.parameters() if parameter.ndim < 2 or not parameter.is_floating_point()}
    narrow = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = [module for module in model.modules() if isinstance(module, Block)]
    for layer in layers:
        # The last layer is the first that the backward pass needs.
        fully_shard(
            layer, mesh=mesh, mp_policy=narrow, ignored_params=vectors, reshard_after_forward=layer is not layers[-1]
        )
    fully_shard(model, mesh=mesh, ignored_params=vectors, reshard_after_forward=False)
    for vector in vectors:
        vector.data = vector.data.to(world.device)
    if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in model.parameters()):
        model.float()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_custom_all_gather(_TimedAllGather(world))
            module.set_custom_reduce_scatter(_TimedReduceScatter(world))


def loading_dtype(folder: Path, world: World) -> torch.dtype:
    """In which dtype to read a model folder that is trained as a whole: as it is stored where it will be cut up."""
    return stored_dtype(folder) if world.layout.shard > 1 else torch.float32


def hold_gradients(model: nn.Module, hold: bool) -> None:
    """Whether the gradients of a sharded model stay where they come about, for other micro-batches to be added.

    They are whole until they are summed, which costs memory for all of them once and spares all sums but the last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not hold)


class _TimedAllGather(DefaultAllGather):
    """Brings shards together, and has the world count how long this process waited for the others."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, *args: Any, **kwargs: Any) -> dist.Work | None:
        with self.world.waiting():
            return super().__call__(*args, **kwargs)


class _TimedReduceScatter(DefaultReduceScatter):
    """Sums gradients into shards, timed likewise."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, *args: Any, **kwargs: Any) -> dist.Work:
        with self.world.waiting():
            return super().__call__(*args, **kwargs)
