"""Causal attention: a plain reference, and the implementation that the decoder uses, chosen in `attention`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class CausalMask:
    """Which keys each query sees: itself and what lies before it, in its own segment and within a window.

    Built once for a batch and shared by all layers. `segments` [batch, seq] numbers the documents packed into each
    row; None means that each row is one document.
    """

    def __init__(self, seq: int, segments: Tensor | None = None, device: torch.device | None = None) -> None:
        self.seq = seq
        self.segments = segments
        self.device = segments.device if segments is not None else device
        self._visible: dict[int | None, Tensor] = {}

    def visible(self, window: int | None = None) -> Tensor:
        """True where query i sees key j: [batch or 1, seq, seq]."""
        if window not in self._visible:
            at = torch.arange(self.seq, device=self.device)
            distance = at[:, None] - at
            sees = distance >= 0
            if window is not None:
                sees &= distance < window
            sees = sees[None]
            if self.segments is not None:
                sees = sees & (self.segments[:, :, None] == self.segments[:, None, :])
            self._visible[window] = sees
        return self._visible[window]


def attention_reference(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q·kᵀ / √head_dim)·v over the visible keys, written as the formula.

    q [batch, heads, queries, head_dim]; k, v [batch, kv_heads, keys, head_dim], each shared by a group of
    consecutive query heads; visible [batch or 1, queries, keys]. Returns [batch, heads, queries, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: CausalMask, window: int | None = None) -> Tensor:
    """Causal self-attention; shapes as in `attention_reference` with as many queries as keys."""
    visible = mask.visible(window)[:, None]
    mixed: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return mixed
