"""Keys and values in blocks, as torch tensors: what the decoder attends to when the torch runner runs it.

    cache = PagedCache(config, blocks=512, dtype=torch.float32, device="cpu")
    hidden = model(tokens[:, None], cache=cache.turn(batch))        # packed tokens [n, 1]

Matrix products see the packed tokens; only attention looks at sequences, in groups of similar shape, over keys and
values gathered from their blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.infer.runner import BLOCK_TOKENS, Batch
from liuyi.model.attention import CausalMask, attention, fused_attention
from liuyi.model.config import DecoderConfig

_UNEVEN = 4
"""In a group nothing is shorter than the longest by more than this factor: attention pads to the longest."""

_MASKED = 1 << 22
"""Elements of a mask, at most: 16 MiB in float32. Long chunks over long contexts go through attention in pieces."""


class PagedCache:
    """Blocks of keys and values of all layers, allocated once. On a CPU, blocks never written take no memory."""

    def __init__(self, config: DecoderConfig, blocks: int, dtype: torch.dtype, device: str | torch.device) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, blocks, BLOCK_TOKENS, config.head_dim)
        self.config = config
        self.keys = _zeros(shape, dtype, torch.device(device))
        self.values = _zeros(shape, dtype, torch.device(device))

    @property
    def size_bytes(self) -> int:
        """Memory that all blocks take once they are written."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def turn(self, batch: Batch) -> Turn:
        """What one forward pass over the batch's tokens sees of the cache."""
        return Turn(self, batch)


class Turn:
    """A `KVCache` for packed tokens [n, 1]: keeps their keys and values, and attends sequence by sequence."""

    def __init__(self, cache: PagedCache, batch: Batch) -> None:
        self._cache = cache
        device = cache.keys.device
        begins = np.cumsum(batch.counts) - batch.counts
        owners = np.repeat(np.arange(len(batch.counts)), batch.counts)
        positions = np.arange(len(batch.tokens)) - begins[owners] + batch.lengths[owners]
        self.positions = torch.from_numpy(positions)[:, None].to(device)
        self._block = torch.from_numpy(batch.tables[owners, positions // BLOCK_TOKENS]).to(device)
        self._offset = torch.from_numpy(positions % BLOCK_TOKENS).to(device)
        self._groups = [_Group(cache, batch, begins, members) for members in _alike(batch)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `KVCache.attend`; q, k, v and the result are [n, heads, 1, head_dim]."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[:, self._block, self._offset] = k[:, :, 0].transpose(0, 1).to(keys.dtype)
        values[:, self._block, self._offset] = v[:, :, 0].transpose(0, 1).to(values.dtype)
        if len(self._groups) == 1:
            return self._groups[0].attend(layer, q, k, v)
        mixed = torch.empty_like(q)
        for group in self._groups:
            mixed[group.own] = group.attend(layer, q, k, v)
        return mixed


class _Group:
    """Sequences of the batch whose attention is computed together, as rows padded to the longest."""

    def __init__(self, cache: PagedCache, batch: Batch, begins: NDArray[np.integer], members: list[int]) -> None:
        self._cache = cache
        self._device = cache.keys.device
        counts, lengths = batch.counts[members], batch.lengths[members]
        self.rows, self.seq = len(members), int(counts.max())
        step = np.arange(self.seq)
        # A row's padding repeats its last token; what attention makes of it is dropped.
        within = np.minimum(step, counts[:, None] - 1)
        laid_out = (begins[members][:, None] + within).ravel()
        self._positions = lengths[:, None] + within
        self._ends = lengths + counts
        self._tables = batch.tables[members]
        self._is_even = bool((counts == self.seq).all())
        self._all = self._is_even and len(laid_out) == len(batch.tokens) and bool((np.diff(laid_out) == 1).all())
        self._laid_out = torch.from_numpy(laid_out).to(self._device)
        self._real = torch.from_numpy(np.flatnonzero(step < counts[:, None])).to(self._device)
        self.own = self._laid_out[self._real]
        """Its tokens in the packed batch."""
        self._fresh = CausalMask(self.rows, self.seq, None, self._device) if not lengths.any() else None
        self._views: dict[int | None, _View] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of its tokens, [own tokens, heads, 1, head_dim], given those of the whole batch."""
        config, dtype = self._cache.config, self._cache.keys.dtype
        window = config.window(layer)
        rows = self._lay_out(q)
        if self._fresh is not None:
            # As the cache will give them back, so that a prompt reads the same when it comes again.
            k, v = (self._lay_out(x.to(dtype).to(q.dtype)) for x in (k, v))
            mixed = attention(rows, k, v, self._fresh, window)
        else:
            view = self._view(window)
            keys, values = (view.gather(kept[layer]).to(q.dtype) for kept in (self._cache.keys, self._cache.values))
            mixed = _one_query(rows, keys, values, view) if self.seq == 1 else _queries(rows, keys, values, view)
        packed = mixed.transpose(1, 2).flatten(0, 1)[:, :, None]
        return packed if self._is_even else packed[self._real]

    def _lay_out(self, packed: Tensor) -> Tensor:
        """Packed tokens [n, heads, 1, head_dim] of the batch as rows [rows, heads, seq, head_dim]."""
        own = packed if self._all else packed[self._laid_out]
        return own.view(self.rows, self.seq, *packed.shape[1::2]).transpose(1, 2)

    def _view(self, window: int | None) -> _View:
        if window not in self._views:
            self._views[window] = _View(self._tables, self._positions, self._ends, window, self._device)
        return self._views[window]


class _View:
    """The blocks in which queries of some rows see anything, from each row's first one on."""

    def __init__(
        self,
        tables: NDArray[np.int32],
        positions: NDArray[np.integer],
        ends: NDArray[np.integer],
        window: int | None,
        device: torch.device,
    ) -> None:
        first = np.zeros_like(ends) if window is None else np.maximum(positions[:, 0] - window + 1, 0) // BLOCK_TOKENS
        most = int((-(-ends // BLOCK_TOKENS) - first).max())
        at = np.minimum(first[:, None] + np.arange(most), tables.shape[1] - 1)
        # Blocks beyond a row's end are masked; any will do.
        blocks = np.maximum(np.take_along_axis(tables, at, axis=1), 0)
        self.rows, self.keys = len(tables), BLOCK_TOKENS * most
        self._blocks = torch.from_numpy(blocks.ravel()).to(device)
        self._positions = torch.from_numpy(positions).to(device)
        self._first = torch.from_numpy(BLOCK_TOKENS * first).to(device)
        self._window = window
        self._biases: dict[tuple[int, int], Tensor] = {}

    def gather(self, kept: Tensor) -> Tensor:
        """Keys or values of one layer, [kv_heads, blocks, tokens, head_dim], as [kv_heads, rows, keys, head_dim]."""
        return kept.index_select(1, self._blocks).view(kept.shape[0], self.rows, self.keys, kept.shape[-1])

    def bias(self, begin: int, end: int) -> Tensor:
        """0 where queries `begin` … `end` see a key and −∞ where not: [rows, queries, keys]."""
        if (begin, end) in self._biases:
            return self._biases[begin, end]
        keys = self._first[:, None] + torch.arange(self.keys, device=self._positions.device)
        distance = self._positions[:, begin:end, None] - keys[:, None]
        hidden = distance < 0 if self._window is None else (distance < 0) | (distance >= self._window)
        bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
        if bias.numel() == self.rows * self.keys * self._positions.shape[1]:
            # Small enough for one piece: the same for every layer.
            self._biases[begin, end] = bias
        return bias


def _one_query(q: Tensor, k: Tensor, v: Tensor, view: _View) -> Tensor:
    """Attention of one query a row: its heads are the rows of a product with the keys that they share.

    q [rows, heads, 1, head_dim]; k, v [kv_heads, rows, keys, head_dim]. Returns [rows, heads, 1, head_dim].
    """
    rows, heads, _, head_dim = q.shape
    kv_heads = k.shape[0]
    stacked = (q * head_dim**-0.5).view(rows, kv_heads, -1, head_dim).transpose(0, 1).flatten(0, 1)
    scores = torch.bmm(stacked, k.flatten(0, 1).transpose(1, 2)).view(kv_heads, rows, -1, view.keys)
    weights = scores.add_(view.bias(0, 1)).softmax(dim=-1).flatten(0, 1)
    mixed = torch.bmm(weights, v.flatten(0, 1)).view(kv_heads, rows, -1, head_dim)
    return mixed.transpose(0, 1).reshape(rows, heads, 1, head_dim)


def _queries(q: Tensor, k: Tensor, v: Tensor, view: _View) -> Tensor:
    """Attention of several queries a row, so many at a time that the mask stays small. Shapes as in `_one_query`."""
    k, v = k.transpose(0, 1), v.transpose(0, 1)
    piece = max(1, _MASKED // (view.rows * view.keys))
    mixed = [
        fused_attention(part, k, v, view.bias(at, at + part.shape[2])[:, None].to(q.dtype))
        for at, part in ((at, q[:, :, at : at + piece]) for at in range(0, q.shape[2], piece))
    ]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


def _alike(batch: Batch) -> Iterator[list[int]]:
    """Indices of sequences whose attention is computed together, in their own order where all are alike."""
    counts, ends = batch.counts.tolist(), (batch.lengths + batch.counts).tolist()
    order = sorted(range(len(counts)), key=lambda at: (-counts[at], -ends[at]))
    group: list[int] = []
    longest = 0
    for at in order:
        if group and (_UNEVEN * counts[at] < counts[group[0]] or _UNEVEN * ends[at] < longest):
            yield sorted(group)
            group, longest = [], 0
        group.append(at)
        longest = max(longest, ends[at])
    if group:
        yield sorted(group)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from fresh pages, which are zero without being touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    fresh = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8))
    return fresh.view(dtype).view(shape)
