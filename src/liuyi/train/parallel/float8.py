"""fp8 training: the products of the layers' linear maps, forward and backward, in eight-bit floats (arXiv 2209.05433).

    float8(model, torch.device("cuda"))     # once, before layers are recomputed, compiled or sharded

Each matrix is scaled by its largest value just before it is multiplied: activations and weights to e4m3, gradients to
e5m2, as torchao has it. Weights, gradients and optimiser state keep their dtypes, so parameters, checkpoints and the
model that is published know nothing of it. Embeddings, head, norms, attention and the routers of experts stay as they
are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Block, Linear
from liuyi.train.torchao import demand_torchao

CAPABILITY = (8, 9)
"""Of the first NVIDIA GPUs that multiply eight-bit floats (Ada)."""
MULTIPLE = 16
"""Both sides of a matrix must be a multiple of it."""


def float8(model: nn.Module, device: torch.device, *, emulate: bool = False) -> None:
    """Have the layers' linear maps multiply in eight bits, in place.

    `emulate` rounds the same way and multiplies in the dtype of the activations, on any device: it shows what fp8 does
    to a training, and is slow. Raises ModelError for a device without such products, or a model without such matrices,
    and StepError where torchao is missing.
    """
    if not emulate:
        demand_float8(device)
    demand_torchao("fp8 training")
    product = _product(emulate)
    chosen = [
        module
        for layer in model.modules()
        if isinstance(layer, Block)
        for name, module in layer.named_modules()
        if isinstance(module, Linear) and not name.endswith("mlp.gate")
    ]
    chosen = [each for each in chosen if each.in_features % MULTIPLE == 0 and each.out_features % MULTIPLE == 0]
    if not chosen:
        raise ModelError(
            f"no full matrix of the layers has sides that are multiples of {MULTIPLE}, as fp8 needs them",
            hint="leave fp8 out, with four-bit weights too, or take another hidden_size",
        )
    for linear in chosen:
        linear.forward = _Float8(linear, product)  # type: ignore[method-assign]


def demand_float8(device: torch.device) -> None:
    """Raises ModelError for a device that has no products of eight-bit floats."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY:
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    raise ModelError(
        f"fp8 needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later, this is {name}",
        hint="leave fp8 out",
    )


Product = Callable[[Tensor, Tensor], Tensor]


class _Float8:
    """The forward pass of a linear map; the weight is looked up in each, since sharding puts others in its place."""

    def __init__(self, linear: Linear, product: Product) -> None:
        self.linear = linear
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        if not x.numel():
            # An expert without tokens: what has no largest value cannot be scaled, and there is nothing to round.
            return Linear.forward(self.linear, x)
        y = self.product(x, self.linear.weight.to(x.dtype).t())
        return y if self.linear.bias is None else y + self.linear.bias.to(x.dtype)


def _product(emulate: bool) -> Product:
    """x [..., in] · w [in, out], differentiable."""
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args
    from torchao.float8.float8_training_tensor import LinearMMConfig, ScaledMMConfig

    # Padding serves the gradient of the weight, whose products run over tokens, of which there may be any number.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    gemms = (config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight)
    settings = LinearMMConfig(*(ScaledMMConfig(emulate, gemm.use_fast_accum, False, True) for gemm in gemms))

    def product(x: Tensor, w: Tensor) -> Tensor:
        y: Tensor = matmul_with_hp_or_float8_args.apply(x, w, settings, config)
        return y

    return product
