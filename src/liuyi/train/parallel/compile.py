"""Compilation: what lies between a layer's products, as few kernels, by `torch.compile`.

For GPUs: on a CPU the native kernels do the same in bfloat16, and are not used where code is compiled. Layers are
compiled one by one, and share what is compiled, so a deep model takes as long as one of a few layers: some ten seconds
when the first step is taken, and again for the first batch with documents and the last of another size. Attention stays
as it is, a kernel of its own.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from liuyi.model.decoder import Attention, Block


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every layer, in place: names of parameters stay, gradients are the same to rounding.

    `backend` is `torch.compile`'s. To be called after layers are recomputed, and before they are sharded.
    """
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = _attention_apart()
        elif isinstance(module, Block):
            module.compile(backend=backend)


@functools.cache
def _attention_apart() -> type[Attention]:
    """Attention whose kernel is called as it is, one class for all layers."""
    # Here rather than where it is written, since it takes seconds to import the compiler.
    apart = torch.compiler.disable(Attention.attend)  # type: ignore[no-untyped-call]
    return type("Attention", (Attention,), {"attend": apart, "plain": Attention})
