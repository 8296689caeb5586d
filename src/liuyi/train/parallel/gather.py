"""From a model laid out over processes back to one for one device, so that it can be measured, merged and saved.

model = gather_model(model, world)      # on every rank; the first one's is whole, the others have none
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from liuyi.train.world import World

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def gather_model(model: M, world: World) -> M | None:
    """The same model with all of its weights on the CPU and nothing applied to it; None on all ranks but the first.

    Every rank calls it. Weights come one after another, so that beside the result there is one whole tensor at a time.
    Alone, it is the model itself.
    """
    if world.size == 1:
        return model
    whole: dict[Tensor, Tensor] = {}
    for parameter in model.parameters():
        gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if world.leads:
            whole[parameter] = nn.Parameter(gathered.detach().cpu(), requires_grad=parameter.requires_grad)
    return _plain(model, whole) if world.leads else None


def _plain(module: M, whole: Mapping[Tensor, Tensor]) -> M:
    """A module of the same attributes without what was applied to it: hooks, other forward passes, FSDP's class."""
    kind: Any = type(module)
    if issubclass(kind, FSDPModule):
        # FSDP makes a class of itself and the module's own.
        kind = next(base for base in kind.__bases__ if not issubclass(base, FSDPModule))
    kind = vars(kind).get("plain", kind)
    plain = object.__new__(kind)
    untouched = nn.Module().__dict__
    for name, value in module.__dict__.items():
        if name == "forward" or name.startswith("_fsdp"):
            continue
        hooks = isinstance(untouched.get(name), OrderedDict) or name == "_compiled_call_impl"
        plain.__dict__[name] = untouched[name] if hooks else value
    plain.__dict__["_parameters"] = {
        name: parameter if parameter is None else whole[parameter] for name, parameter in module._parameters.items()
    }
    plain.__dict__["_buffers"] = {
        name: buffer if buffer is None else buffer.cpu() for name, buffer in module._buffers.items()
    }
    plain.__dict__["_modules"] = {
        name: child if child is None else _plain(child, whole) for name, child in module._modules.items()
    }
    return plain  # type: ignore[no-any-return]
