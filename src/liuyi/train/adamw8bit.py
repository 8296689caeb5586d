"""AdamW with both moments of large matrices in eight bits: a quarter of the optimiser's memory.

The formats and the step are torchao's: codes into a table that is dense near zero, and a scale for each block (Dettmers
et al. 2021, "8-bit Optimizers via Block-wise Quantization"). It departs from torchao's own optimiser in two things. A
block never crosses the rows of a matrix, so one that is cut by rows between processes has the same blocks as a whole
one. And the state is kept as the plain tensors that the formats are made of, so a checkpoint needs to know nothing.

The step is compiled, once for each shape, as torchao has it: uncompiled it goes over memory many times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from liuyi.core.errors import ModelError
from liuyi.train.parallel.gradients import local
from liuyi.train.torchao import demand_torchao

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 32
SMALL = 4096
"""Parameters of fewer values keep 32 bits, as do those whose rows no block divides (vectors among them)."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW8bit(torch.optim.Optimizer):
    """Steps as `torch.optim.AdamW` does, on moments that are rounded to eight bits after each step."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        demand_torchao("the optimiser adamw8bit")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        from torch._dynamo.utils import disable_cache_limit
        from torchao.optim.adam import single_param_adam

        update = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
        with disable_cache_limit():
            for group in self.param_groups:
                lr = torch.tensor(group["lr"], dtype=torch.float32)
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    if not state:
                        state.update(_fresh_state(parameter))
                    state["step"] += 1
                    if not local(parameter).numel():
                        continue  # a matrix of fewer rows than there are shards
                    moments = [_moment(state, name) for name in MOMENTS]
                    weights, grad = local(parameter.detach()), local(parameter.grad)
                    rates = (lr, *group["betas"], group["weight_decay"], group["eps"])
                    update(weights, grad, state["step"], *moments, None, *rates, True, False)  # type: ignore[no-untyped-call]
                    # So that whoever keeps a copy of the weight knows.
                    torch.autograd.graph.increment_version(parameter)


def block_size(parameter: Tensor) -> int:
    """Values that share a scale; 0 where moments keep 32 bits."""
    if parameter.ndim < 2 or parameter.numel() < SMALL:
        return 0
    block = math.gcd(LARGEST_BLOCK, parameter.shape[-1])
    return block if block >= SMALLEST_BLOCK else 0


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    """Zeros for both moments: values, or codes of their shape and scales `[..., blocks in a row]`."""
    state = {"step": torch.zeros((), device=parameter.device)}
    block = block_size(parameter)
    for name in MOMENTS:
        if not block:
            state[name] = torch.zeros_like(parameter)
            continue
        own = local(parameter)
        *rows, columns = own.shape
        if columns % block:
            raise ModelError(
                f"eight-bit moments have blocks of {block}, which do not divide this process's {columns} columns",
                hint="cut matrices by their rows (shard) rather than inside them (tensor), or take adamw",
            )
        codes = torch.zeros_like(own, dtype=torch.uint8)
        scales = torch.zeros(*rows, columns // block, device=own.device)
        state[f"{name}_codes"] = _distributed(codes, parameter, parameter.shape)
        shape = torch.Size([*parameter.shape[:-1], parameter.shape[-1] // block])
        state[f"{name}_scales"] = _distributed(scales, parameter, shape)
    return state


def _moment(state: dict[str, Tensor], name: str) -> Tensor:
    """This process's part of a moment, as what torchao computes on; what is written to it is written to the state."""
    if name in state:
        return local(state[name])
    from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

    codes, scales = local(state[f"{name}_codes"]), local(state[f"{name}_scales"])
    signed = name == "exp_avg"
    table = torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned(), device=codes.device)
    moment: Tensor = OptimState8bit(codes, scales.view(-1), table, signed, dtype=torch.float32)
    return moment


def _distributed(own: Tensor, like: Tensor, shape: torch.Size) -> Tensor:
    """A part of a tensor of this `shape`, cut as `like` is."""
    if not isinstance(like, DTensor):
        return own
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)
