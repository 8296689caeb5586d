"""Recomputation: less memory for longer steps, by keeping less for the gradient and making it again when it is due.

    checkpoint_activations(model, "mlp")      # of each MLP only its input: half as much, a sixth more to compute
    checkpoint_activations(model, "layer")    # of each layer only its input: a tenth as much, a quarter more to compute

(arXiv 1604.06174; the figures are counted for layers shaped as SmolLM2-135M's, in bfloat16, and of what is computed the
matrix products: attention over long rows comes to a third more.) Applied in place, so that
parameters keep their names. Attention alone is not on offer: it makes its scores again anyway, and what it keeps is
little beside what an MLP does.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from liuyi.model.decoder import Block
from liuyi.train.params import Recompute


def checkpoint_activations(model: nn.Module, recompute: Recompute) -> None:
    """Have every `mlp` or `layer` keep nothing of its forward pass but its input; gradients stay the same bits.

    To be called once, before layers are compiled or sharded.
    """
    for layer in [module for module in model.modules() if isinstance(module, Block)]:
        if recompute == "layer":
            _keep_input_only(layer)
        elif recompute == "mlp":
            _keep_input_only(layer.mlp)


def _keep_input_only(module: nn.Module) -> None:
    module.__class__ = _recomputing(type(module))  # type: ignore[arg-type]


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of such modules. One for all of a kind, rather than a function for each, shares what is compiled."""

    def forward(self: nn.Module, *args: Any) -> Any:
        # No layer draws random numbers, so there is no state of generators to come back to.
        once = functools.partial(kind.forward, self)
        return checkpoint(once, *args, use_reentrant=False, preserve_rng_state=False)

    return type(kind.__name__, (kind,), {"forward": forward, "plain": kind})
