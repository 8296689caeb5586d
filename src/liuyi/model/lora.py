"""Adapters in training: frozen linear layers, each with a trained product of two thin matrices beside it.

    add_lora(model, config := LoraConfig(), seed=1)    # what is not part of an adapter is frozen
    …
    lora_adapter(model, config).save(folder)           # as PEFT reads it
    start = without_lora(model)                        # the frozen model; its weights are shared

LoRA (arXiv 2106.09685) adds scale·B·A to a weight W. `rslora` scales by alpha / √rank rather than alpha / rank (arXiv
2312.03732). `dora` trains the length m of every row besides, m·(W + scale·B·A) / ‖W + scale·B·A‖, with the norm taken
as a constant in the gradient (arXiv 2402.09353). `pissa` begins with the largest singular values of W in B·A and trains
on top of what is left of W (arXiv 2404.02948).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.core.errors import ModelError, did_you_mean
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank
from liuyi.model.decoder import MLP, Attention, Decoder, Linear
from liuyi.model.fused import native_for
from liuyi.model.joined import is_watched
from liuyi.model.low_rank import low_rank_products
from liuyi.model.nf4 import Nf4Linear
from liuyi.model.stacked import Stack, stacked_mlp, stacked_products


@dataclass(frozen=True)
class LoraConfig:
    """What is added to which of the decoder's projections."""

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    nf4: bool = False
    """Keep the frozen projections in four bits (QLoRA)."""
    targets: tuple[str, ...] = PROJECTIONS

    @property
    def scale(self) -> float:
        """What B·A is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """y = x·(W + scale·B·A)ᵀ + b, or with DoRA's row lengths, in the dtype of x; A, B and the lengths are trained."""

    start: tuple[Tensor, Tensor] | None
    """PiSSA's first A and B, which the frozen weight lacks."""
    stack: Stack | None
    """The memory that it shares with layers of the same x, where `stack_frozen` gave it one."""

    def __init__(self, base: Linear | Nf4Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.scale
        self.start = self.stack = None
        device = base.codes.device if isinstance(base, Nf4Linear) else base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(config.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.magnitude = nn.Parameter(torch.zeros(base.out_features, device=device)) if config.dora else None

    def forward(self, x: Tensor) -> Tensor:
        if self.is_plain:
            return self._at_once((self,), x)[0]
        low = functional.linear(functional.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scale
        y: Tensor = self.base(x)
        if self.magnitude is None:
            return y + low
        lengths = (self.magnitude / self.row_lengths()).to(x.dtype)
        if self.base.bias is None:
            return (y + low) * lengths
        bias = self.base.bias.to(x.dtype)
        return (y - bias + low) * lengths + bias

    @property
    def is_plain(self) -> bool:
        """Whether it is a sum of two products: DoRA's is not, and where the base's product was replaced (by fp8), or
        hooks look on, the base itself is to be called."""
        return self.magnitude is None and not is_watched(self.base)

    @staticmethod
    def together(layers: Sequence[LoraLinear], x: Tensor) -> tuple[Tensor, ...]:
        """What several layers make of the same x, in fewer passes over it."""
        if not all(layer.is_plain and not is_watched(layer) for layer in layers):
            return tuple(layer(x) for layer in layers)
        return LoraLinear._at_once(layers, x)

    @staticmethod
    def mlp(x: Tensor, gate: LoraLinear, up: LoraLinear, down: LoraLinear) -> Tensor | None:
        """down(silu(gate(x)) · up(x)) by one function where that can be; else None."""
        native = native_for(x, width=gate.lora_B.shape[0])
        stack = _stack_of((gate, up), x)
        if native is None or stack is None or not isinstance(down.base, Linear) or down.base.weight.dtype != x.dtype:
            return None
        if any(layer.base.bias is not None or not layer.is_plain or is_watched(layer) for layer in (gate, up, down)):
            return None
        return stacked_mlp(x, stack, down.base.weight, down.lora_A, down.lora_B, down.scale, native)

    @staticmethod
    def _at_once(layers: Sequence[LoraLinear], x: Tensor) -> tuple[Tensor, ...]:
        if stack := _stack_of(layers, x):
            return stacked_products(x, stack, [layer.base.bias for layer in layers])
        downs, ups = [layer.lora_A for layer in layers], [layer.lora_B for layer in layers]
        return low_rank_products(x, [layer.base for layer in layers], downs, ups, [layer.scale for layer in layers])

    @torch.no_grad()
    def row_lengths(self) -> Tensor:
        """Length of every row of W + scale·B·A, float32 [out_features]."""
        total: Tensor = self.base.widened().float() + self.lora_B @ self.lora_A * self.scale
        lengths: Tensor = torch.linalg.vector_norm(total, dim=1)
        # A row of zeros has no direction, and stays what it is.
        return lengths.clamp(min=torch.finfo(torch.float32).tiny)

    def change(self) -> LowRank:
        """What it does to the weight that the model had before it: PiSSA's start is taken off again."""
        down, up, scale = self.lora_A.detach().float().cpu(), self.lora_B.detach().float().cpu(), self.scale
        if self.start is not None:
            # The start stays where the adapter was made. The rank is twice what the scale was made for, so the scale
            # goes into the matrix.
            first, second = (part.cpu() for part in self.start)
            down, up, scale = torch.cat((down, first)), torch.cat((up, -second), dim=1) * scale, 1.0
        lengths = None if self.magnitude is None else self.magnitude.detach().float().cpu()
        return LowRank(down, up, scale, lengths)


@torch.no_grad()
def add_lora(model: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze the model and put a `LoraLinear` in place of each targeted projection.

    A is uniform in ±1/√in_features as in PEFT, a function of the seed, and B zero, so that the outputs are those of the
    model. With `nf4` every projection of the layers is rounded to four bits, whether it is targeted or not. Raises
    ModelError for a target that is no projection, a rank larger than a matrix, or a model of quantised weights.
    """
    for target in config.targets:
        if target not in PROJECTIONS:
            raise ModelError(f"'{target}' is no projection of the decoder", hint=did_you_mean(target, PROJECTIONS))
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(model.named_modules()):
        short = name.rpartition(".")[2]
        if short not in PROJECTIONS:
            continue
        if not isinstance(module, Linear):
            raise ModelError("adapters are trained beside full weights", hint="take the model before its quantisation")
        if short not in config.targets:
            if config.nf4:
                model.set_submodule(name, Nf4Linear.of(module))
            continue
        model.set_submodule(name, _lora(name, module, config, generator))


def hold_frozen(model: Decoder, dtype: torch.dtype) -> None:
    """Keep the matrices that are multiplied in `dtype` in it from now on, rather than round them for each product.

    Products come out the same to the bit. Training no longer has the weights' own precision then: what needs it (a
    merged model, a published one) reads them from where they came. DoRA's matrices stay, for it takes their lengths.
    """
    for _, layer in lora_layers(model):
        if isinstance(layer.base, Linear) and layer.magnitude is None:
            layer.base.weight.data = layer.base.weight.data.to(dtype)


def stack_frozen(model: Decoder) -> None:
    """Put the frozen matrices of layers with the same x into one memory with their adapters' B's, where x is no wider
    than what they make of it together: thin products become part of the large ones (`model/stacked.py`).

    To be called when the model is where it is trained, and whole.
    """
    for module in model.modules():
        groups: list[list[nn.Module]] = []
        if isinstance(module, Attention):
            groups = [[module.q_proj, module.k_proj, module.v_proj], [module.o_proj]]
        elif isinstance(module, MLP):
            groups = [[module.gate_proj, module.up_proj]]
        for group in groups:
            layers = [layer for layer in group if isinstance(layer, LoraLinear)]
            # Those of a group that are not all adapters are asked one by one.
            for together in [layers] if len(layers) == len(group) else [[layer] for layer in layers]:
                _stack(together)


def _stack(layers: Sequence[LoraLinear]) -> None:
    bases = [layer.base for layer in layers if isinstance(layer.base, Linear) and layer.magnitude is None]
    if len(bases) < len(layers) or len({(base.weight.dtype, base.weight.device) for base in bases}) > 1:
        return
    if sum(base.out_features for base in bases) < bases[0].in_features:
        return
    downs, ups = [layer.lora_A for layer in layers], [layer.lora_B for layer in layers]
    stack = Stack([base.weight for base in bases], downs, ups, layers[0].scale)
    for layer in layers:
        layer.stack = stack


def _stack_of(layers: Sequence[LoraLinear], x: Tensor) -> Stack | None:
    """The memory that these layers, and no others, have in common, if products with x can be taken from it."""
    stack = layers[0].stack
    if stack is None or len(stack.weights) != len(layers) or any(layer.stack is not stack for layer in layers):
        return None
    return stack if stack.serves(x) else None


def _lora(name: str, linear: Linear, config: LoraConfig, generator: torch.Generator) -> LoraLinear:
    if config.rank > min(linear.in_features, linear.out_features):
        shape = f"{linear.out_features} × {linear.in_features}"
        raise ModelError(f"rank {config.rank} is more than '{name}' of {shape} can have", hint="lower the rank")
    start = _principal(linear, config) if config.pissa else None
    layer = LoraLinear(Nf4Linear.of(linear) if config.nf4 else linear, config)
    if start is not None:
        layer.start = start
        layer.lora_A.copy_(start[0])
        layer.lora_B.copy_(start[1])
    else:
        bound = linear.in_features**-0.5
        fresh = torch.empty(config.rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        layer.lora_A.copy_(fresh)
    if layer.magnitude is not None:
        layer.magnitude.copy_(layer.row_lengths())
    return layer


def _principal(linear: Linear, config: LoraConfig) -> tuple[Tensor, Tensor]:
    """A and B of the largest singular values, which are taken out of the layer's weight."""
    u, s, vh = torch.linalg.svd(linear.weight.float(), full_matrices=False)
    roots = (s[: config.rank] / config.scale).sqrt()
    down, up = roots[:, None] * vh[: config.rank], u[:, : config.rank] * roots
    linear.weight.sub_(up @ down * config.scale)
    return down.contiguous(), up.contiguous()


def lora_layers(model: Decoder) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that `add_lora` made, by the names of the projections they stand for."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def lora_adapter(model: Decoder, config: LoraConfig) -> Adapter:
    """What has been trained so far, for the model as it was before `add_lora`."""
    modules = {name: layer.change() for name, layer in lora_layers(model)}
    return Adapter(modules, rslora=config.rslora and not config.pissa)


def without_lora(model: Decoder) -> Decoder:
    """The model without its adapter, in evaluation mode; weights are shared. PiSSA's base is not the model it began as:
    raises ModelError for that."""
    with torch.device("meta"):
        plain = Decoder(model.config)
    for name, module in plain.named_modules():
        if not any(module.children()) and name:
            found = model.get_submodule(name)
            if isinstance(found, LoraLinear):
                if found.start is not None:
                    raise ModelError("with PiSSA the frozen weights alone are not the model that training began with")
                found = found.base
            plain.set_submodule(name, found)
    return plain.eval()
