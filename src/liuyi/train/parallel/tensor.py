"""Tensor parallel: the matrices of each layer are divided over ranks, which compute one layer together.

    divide_layers(model, world)         # before the model is sharded

Queries, keys, values, and the gate and up projections are cut by columns, so that each rank has some heads and some of
the MLP's inner values; the output and down projections are cut by rows, and what they give is summed over the ranks:
two sums forward and two backward a layer (Megatron-LM, arXiv 1909.08053). Experts are divided like an MLP. Embeddings,
head and norms stay whole on every rank; of the head's work each does a share (`head.py`). By PyTorch's own
`parallelize_module`: parameters become DTensors and keep their names.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Block, Decoder, Linear, RMSNorm
from liuyi.model.fused import norm_to
from liuyi.train.world import World

COLUMNS, ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")


def divide_layers(model: nn.Module, world: World) -> None:
    """Cut the layers' matrices over the tensor ranks, each of which has the whole weights when it comes here.

    Raises ModelError where heads or inner values do not divide, and for adapters and quantised weights.
    """
    if world.mesh is None or world.layout.tensor == 1:
        return
    mesh = world.mesh["tensor"]
    for decoder in [module for module in model.modules() if isinstance(module, Decoder)]:
        check_divisible(decoder.config, world.layout.tensor)
    for layer in [module for module in model.modules() if isinstance(module, Block)]:
        # Every rank has the same weights already: none has to be sent.
        parallelize_module(layer, mesh, _plan(layer), src_data_rank=None)
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            if norm is not None:
                own = partial(_norm_of_own_heads, norm, mesh.get_group())
                norm.forward = own  # type: ignore[method-assign]


def _plan(layer: Block) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {}
    for name, module in layer.named_modules():
        short = name.rpartition(".")[2]
        if short in COLUMNS + ROWS and not isinstance(module, Linear):
            raise ModelError(
                f"'{name}' of a layer is no full matrix, and tensor parallel divides only those",
                hint="set tensor: 1 with adapters and quantised weights",
            )
        if short in COLUMNS:
            plan[name] = ColwiseParallel()
        elif short in ROWS:
            plan[name] = RowwiseParallel()
    return plan


def check_divisible(config: DecoderConfig, ranks: int) -> None:
    """Raises ModelError unless every rank can have as many heads and inner values as the others."""
    inner = (config.moe_intermediate_size or config.intermediate_size) if config.num_experts else 0
    for what, count in (
        ("attention heads", config.num_attention_heads),
        ("key-value heads", config.num_key_value_heads),
        ("inner values of an MLP", config.intermediate_size),
        ("inner values of an expert", inner),
    ):
        if count % ranks:
            raise ModelError(f"{count} {what} cannot be divided over {ranks} ranks", hint="set a smaller tensor: size")


def _norm_of_own_heads(norm: RMSNorm, group: ProcessGroup, x: Tensor, dtype: torch.dtype) -> Tensor:
    """As `RMSNorm.forward`; the gradient of the weight is that of all ranks' heads."""
    return norm_to(x, sum_gradient(norm.weight, group), norm.eps, dtype)


def sum_gradient(value: Tensor, group: ProcessGroup) -> Tensor:
    """The same value, whose gradient is summed over the group."""
    same: Tensor = _SumGradient.apply(value, group)  # type: ignore[no-untyped-call]
    return same


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
