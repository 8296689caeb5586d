"""What makes a model for one device train on several: all of it from outside, in the order that the pieces need."""

from __future__ import annotations

import torch
from torch import nn

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder
from liuyi.model.lora import stack_frozen
from liuyi.model.working import keep_working_copies
from liuyi.train.parallel.compile import compile_layers
from liuyi.train.parallel.context import attend_across
from liuyi.train.parallel.float8 import float8
from liuyi.train.parallel.recompute import checkpoint_activations
from liuyi.train.parallel.shard import shard
from liuyi.train.parallel.tensor import divide_layers
from liuyi.train.params import Recompute
from liuyi.train.world import World


def parallelize(
    model: nn.Module,
    world: World,
    *,
    compute_dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    fp8: bool = False,
    compiled: bool = False,
) -> None:
    """Lay out a model whose weights are set over the processes of `world`, and move it to this one's device; all in
    place, and names of parameters stay.

    `compute_dtype` is what the objective multiplies in, and what matrices that are cut up travel as. The optimiser is
    made afterwards, since a parameter is then another object. Raises ModelError for a layout that does not suit it.
    """
    if fp8:
        if world.layout.tensor > 1:
            raise ModelError("fp8 and tensor parallelism do not go together", hint="set tensor: 1")
        float8(model, world.device)
    divide_layers(model, world)
    attend_across(model, world)
    checkpoint_activations(model, recompute)
    if compiled:
        compile_layers(model)
    if world.layout.shard > 1:
        shard(model, world, compute_dtype)
    else:
        model.to(world.device)
        if isinstance(model, Decoder):
            stack_frozen(model)
    if not fp8:
        keep_working_copies(model, compute_dtype)
