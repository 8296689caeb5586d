"""Causal attention over rows that hold one document or several.

`attention_reference` is the formula. `attention` is what the decoder uses: in training on a CPU with a matrix unit our
own kernel; else PyTorch's fused one where every token sees all before it, and `tiled_attention` on the CPU where
documents are packed or the window slides, since the fused kernel would compute what the mask then hides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liuyi.kernels.training import FlashShape, TrainingKernels
from liuyi.model.fused import native_for

TILE_QUERIES = 64
TILE_SCORES = 1 << 18
"""Scores of a tile, about: 1 MiB in float32, so that they stay in a core's cache from one operation to the next."""


def attention_reference(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q·kᵀ / √head_dim)·v over the visible keys, written as the formula.

    q [batch, heads, queries, head_dim]; k, v [batch, kv_heads, keys, head_dim], each shared by a group of
    consecutive query heads; visible [batch or 1, queries, keys]. Returns [batch, heads, queries, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    mixed: Tensor = scores.masked_fill(~visible[:, None], -math.inf).softmax(dim=-1) @ v
    return mixed


def attention(q: Tensor, k: Tensor, v: Tensor, mask: CausalMask, window: int | None = None) -> Tensor:
    """Causal self-attention under a mask; shapes as in `attention_reference`."""
    mixed: Tensor
    if native := _native_for(q, k, v, mask):
        return _NativeAttention.apply(q, k, v, mask, window, native)  # type: ignore[no-untyped-call, no-any-return]
    if mask.starts is None and mask.first == 0 and (window is None or window >= mask.seq):
        mixed = fused_attention(q, k, v)
    elif q.device.type == "cpu":
        mixed = tiled_attention(q, k, v, mask, window)
    else:
        mixed = fused_attention(q, k, v, mask.visible(window)[:, None])
    return mixed


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's own: causal, or under a mask [batch or 1, 1, queries, keys] of what is seen or of what is added.

    Of CUDA's kernels only flash attention lets heads share keys, and it takes neither masks nor float32. With the keys
    of each head beside it another one does; else PyTorch would write out all scores, [batch, heads, queries, keys].
    """
    shares = q.device.type == "cpu" or (mask is None and q.dtype != torch.float32)
    if not shares:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=shares)


def _native_for(q: Tensor, k: Tensor, v: Tensor, mask: CausalMask) -> TrainingKernels | None:
    """The native kernel where it does: whole rows of tokens that lie one after the other, each with its heads."""
    if mask.first or q.shape[3] % 32:
        return None
    native = native_for(*(tensor.transpose(1, 2) for tensor in (q, k, v)), width=q.shape[3])
    return native if native and native.has_amx else None


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: CausalMask, window: int | None, native: TrainingKernels
    ) -> Tensor:
        batch, heads, seq, head_dim = q.shape
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        kv_heads, strides = k.shape[2], (q.stride(1), k.stride(1))
        shape = FlashShape(batch, seq, heads, kv_heads, head_dim, window or 0, head_dim**-0.5, *strides)
        mixed, lse = torch.empty_like(q), q.new_empty(batch, heads, seq, dtype=torch.float32)
        native.attention(shape, q, k, v, mask.starts, mixed, lse)
        ctx.save_for_backward(q, k, v, mask.starts, mixed, lse)
        ctx.shape, ctx.native = shape, native
        return mixed.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        grads = tuple(torch.empty_like(tensor) for tensor in kept[:3])
        ctx.native.attention_backward(ctx.shape, kept, grad.transpose(1, 2).contiguous(), grads)
        return (*(one.transpose(1, 2) for one in grads), None, None, None)


class KVCache(Protocol):
    """What the decoder needs for new tokens that follow tokens computed before."""

    positions: Tensor
    """Position of each new token in its sequence, [batch, seq]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k, v [batch, kv_heads, seq, head_dim] of that layer, and attend with q [batch, heads, seq, head_dim].

        Returns [batch, heads, seq, head_dim].
        """


class CausalMask:
    """Which keys each query sees: itself and what lies before it, in its own segment and within a window.

    Made once for a batch and shared by all layers. `segments` [batch, seq] numbers the documents packed into each
    row, neighbours differently; None means that each row is one document. There are `seq` keys; where there are fewer
    `queries`, they are those of the last tokens.
    """

    def __init__(
        self, batch: int, seq: int, segments: Tensor | None, device: torch.device, queries: int | None = None
    ) -> None:
        self.batch = batch
        self.seq = seq
        self.first = 0 if queries is None else seq - queries
        """The token that the first query belongs to."""
        self.starts = None if segments is None else segment_starts(segments)
        self.device = device
        self._visible: dict[int | None, Tensor] = {}
        self._tiles: dict[tuple[int | None, int], list[Tile]] = {}

    def visible(self, window: int | None = None) -> Tensor:
        """True where query i sees key j: [batch or 1, queries, seq]."""
        if window not in self._visible:
            queries, keys = slice(self.first, self.seq), slice(0, self.seq)
            self._visible[window] = self._sees(slice(0, self.batch), queries, keys, window)
        return self._visible[window]

    def tiles(self, window: int | None, heads: int) -> list[Tile]:
        """The pieces of queries × keys that hold something visible, each small enough to stay in cache."""
        key = (window, heads)
        if key not in self._tiles:
            self._tiles[key] = list(self._tile(window, heads))
        return self._tiles[key]

    def _tile(self, window: int | None, heads: int) -> Any:
        per_tile = max(1, TILE_SCORES // (heads * min(TILE_QUERIES, self.seq) * min(self.seq, window or self.seq)))
        for first in range(0, self.batch, per_tile):
            rows = slice(first, min(first + per_tile, self.batch))
            for begin in range(self.first, self.seq, TILE_QUERIES):
                end = min(begin + TILE_QUERIES, self.seq)
                # Starts grow along a row, so the tile's first query reaches back furthest.
                low = 0 if self.starts is None else int(self.starts[rows, begin].min())
                low = low if window is None else max(low, begin - window + 1)
                keys = slice(low, end)
                hidden = ~self._sees(rows, slice(begin, end), keys, window)
                bias = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -math.inf)
                yield Tile(rows, slice(begin - self.first, end - self.first), keys, bias)

    def _sees(self, rows: slice, queries: slice, keys: slice, window: int | None) -> Tensor:
        at = torch.arange(self.seq, device=self.device)
        distance = at[queries, None] - at[keys]
        sees = (distance >= 0)[None] if window is None else ((distance >= 0) & (distance < window))[None]
        return sees if self.starts is None else sees & (at[keys] >= self.starts[rows, queries, None])


@dataclass(frozen=True)
class Tile:
    """Some queries of some rows, and the keys they may see; `bias` is 0 where they do and −∞ where not."""

    rows: slice
    queries: slice
    keys: slice
    bias: Tensor
    """[rows or 1, queries, keys]"""


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, mask: CausalMask, window: int | None = None) -> Tensor:
    """`attention_reference` tile by tile, with its own gradient; scores are made again for it and never kept.

    The heads of a group are stacked as rows of one matrix product with the keys they share.
    """
    batch, heads, queries, head_dim = q.shape
    kv_heads = k.shape[1]
    # [batch, kv_heads, queries · group, head_dim], each token's heads side by side, so that tiles of tokens are slices.
    q = (q * head_dim**-0.5).view(batch, kv_heads, -1, queries, head_dim).transpose(2, 3).flatten(2, 3)
    mixed: Tensor = _TiledAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v, mask.tiles(window, heads), heads // kv_heads
    )
    return mixed.view(batch, kv_heads, queries, -1, head_dim).transpose(2, 3).flatten(1, 2)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: list[Tile], group: int) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        ctx.save_for_backward(q, k, v)
        ctx.tiles, ctx.group = tiles, group
        mixed = torch.empty_like(q)
        scratch = _scratch(k, tiles, group)
        for tile in tiles:
            tile_q, tile_k, tile_v, tile_mixed = _cut(tile, group, q, k, v, mixed)
            torch.bmm(_probabilities(tile, tile_q, tile_k, scratch), tile_v, out=tile_mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v = ctx.saved_tensors
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scratch, other_scratch = _scratch(k, ctx.tiles, ctx.group), _scratch(k, ctx.tiles, ctx.group)
        for tile in ctx.tiles:
            tile_q, tile_k, tile_v, tile_grad = _cut(tile, ctx.group, q, k, v, grad)
            to_q, to_k, to_v, _ = _cut(tile, ctx.group, grad_q, grad_k, grad_v, grad)
            p = _probabilities(tile, tile_q, tile_k, scratch)
            to_v.baddbmm_(p.transpose(1, 2), tile_grad)
            grad_p = torch.bmm(tile_grad, tile_v.transpose(1, 2), out=other_scratch[: p.numel()].view(p.shape))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype, grad_input=grad_p)
            torch.bmm(grad_scores, tile_k, out=to_q)
            to_k.baddbmm_(grad_scores.transpose(1, 2), tile_q)
        return grad_q, grad_k, grad_v, None, None


def _probabilities(tile: Tile, q: Tensor, k: Tensor, scratch: Tensor) -> Tensor:
    """softmax(q·kᵀ + bias) in the scratch memory: [rows · kv_heads, queries · group, keys]."""
    shape = (q.shape[0], q.shape[1], k.shape[1])
    scores = torch.bmm(q, k.transpose(1, 2), out=scratch[: math.prod(shape)].view(shape))
    rows, queries, keys = tile.rows.stop - tile.rows.start, tile.bias.shape[1], tile.bias.shape[2]
    scores.view(rows, -1, queries, q.shape[1] // queries, keys).add_(tile.bias[:, None, :, None])
    return torch.softmax(scores, -1, out=scores)


def _cut(
    tile: Tile, group: int, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A tile's part of each, [rows · kv_heads, …, head_dim], as views."""
    queries = slice(tile.queries.start * group, tile.queries.stop * group)
    return (
        q[tile.rows].flatten(0, 1)[:, queries],
        k[tile.rows].flatten(0, 1)[:, tile.keys],
        v[tile.rows].flatten(0, 1)[:, tile.keys],
        mixed[tile.rows].flatten(0, 1)[:, queries],
    )


def _scratch(k: Tensor, tiles: list[Tile], group: int) -> Tensor:
    most = max((t.rows.stop - t.rows.start) * t.bias.shape[1] * t.bias.shape[2] for t in tiles)
    return k.new_empty(most * k.shape[1] * group)


def segment_starts(segments: Tensor) -> Tensor:
    """Where the segment of each token begins, [batch, seq], for segment numbers [batch, seq]."""
    at = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return torch.where(begins, at, 0).cummax(dim=1).values
