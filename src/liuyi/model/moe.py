"""A mixture of experts in place of the MLP: each token goes through the few experts that a router chooses for it.

Mixtral (arXiv 2401.04088) and Qwen3-MoE (arXiv 2505.09388) differ in how a dense layer is named and in whether the
chosen weights are made to sum to one. Probabilities are taken in float32. The loss that keeps experts evenly loaded is
that of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, eq. 4), over all layers together as `transformers`
takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.model.config import DecoderConfig


@dataclass(frozen=True)
class Routing:
    """What a router did with a batch."""

    load: Tensor
    """[experts] the share of tokens that went to each; sums to the experts a token has."""
    probability: Tensor
    """[experts] the mean probability of each, differentiable; sums to one."""


class SparseMLP(nn.Module):
    """Σ weight · expert(x) over the experts that `gate` gives the highest probability, for x [batch, seq, hidden]."""

    def __init__(
        self,
        config: DecoderConfig,
        expert: Callable[[int, int], nn.Module],
        linear: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = linear(config.hidden_size, config.num_experts)
        size = config.moe_intermediate_size or config.intermediate_size
        self.experts = nn.ModuleList(expert(config.hidden_size, size) for _ in range(config.num_experts))
        self.routing: Routing | None = None
        """Of the last forward pass that took gradients."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the layer has not routed anything; what a gradient goes through could not be copied."""
        return {**self.__dict__, "routing": None}

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        probabilities = functional.softmax(self.gate(flat).float(), dim=-1)
        weights, experts = probabilities.topk(self.chosen, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        counts = torch.bincount(experts.flatten(), minlength=len(self.experts))
        if torch.is_grad_enabled():
            self.routing = Routing(counts / len(flat), probabilities.mean(0))
        # Tokens in the order of their experts, so that each expert multiplies one contiguous piece.
        order = experts.flatten().argsort(stable=True)
        tokens = order // self.chosen
        pieces = torch.split(flat.index_select(0, tokens), counts.tolist())
        # In training an expert without tokens takes part too: its gradient is zero rather than none, since other
        # micro-batches, and other processes, may have tokens for it.
        idle = torch.is_grad_enabled()
        outputs = [expert(piece) for expert, piece in zip(self.experts, pieces, strict=True) if idle or len(piece)]
        mixed = torch.cat(outputs) * weights.flatten()[order, None]
        return torch.zeros_like(flat).index_add(0, tokens, mixed).view_as(x)


def balance_loss(routings: Iterable[Routing]) -> Tensor:
    """experts · Σ load · probability, each a mean over layers: as low as the experts a token has when all are even."""
    taken = list(routings)
    load = torch.stack([routing.load for routing in taken]).mean(0)
    probability = torch.stack([routing.probability for routing in taken]).mean(0)
    return len(load) * (load * probability).sum()
