"""The key-value cache: what the decoder asks of one, and one with a fixed number of slots.

cache = SlotCache(config, slots=64, max_tokens=512)
turn = cache.extend([3, 5], [7, 4])                     # 7 new tokens for slot 3, 4 for slot 5
hidden = model(tokens, cache=turn)                      # tokens [2, 7], the second row padded on the right
turn.commit()                                           # from now on these tokens count
cache.free(3)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.model.attention import CausalMask, attention, cached_attention
from liuyi.model.config import DecoderConfig


class KVCache(Protocol):
    """What the decoder needs for a batch of new tokens that follow tokens computed before."""

    positions: Tensor
    """Position of each new token in its sequence, [batch, seq]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k, v [batch, kv_heads, seq, head_dim] of that layer, and attend with q [batch, heads, seq, head_dim].

        Returns [batch, heads, seq, head_dim].
        """


class SlotCache:
    """Keys and values of up to `slots` sequences of up to `max_tokens` tokens each, allocated once.

    A sequence occupies a slot from its first `extend` until `free`. Its results depend on its own tokens only, up to
    the rounding of sums that are taken in another order in batches of other shapes. On a CPU, slots that were never
    filled take no memory.
    """

    def __init__(
        self,
        config: DecoderConfig,
        slots: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, max_tokens, config.head_dim)
        self.config = config
        self.slots = slots
        self.max_tokens = max_tokens
        self.keys = _zeros(shape, dtype, torch.device(device))
        self.values = _zeros(shape, dtype, torch.device(device))
        self.lengths = [0] * slots
        """Tokens kept in each slot."""

    @property
    def size_bytes(self) -> int:
        """Memory that the cache holds."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def extend(self, slots: Sequence[int], counts: Sequence[int]) -> Turn:
        """Make room for `counts[i]` new tokens after those of `slots[i]`; nothing counts until `commit`.

        Raises ModelError if a slot is named twice, does not exist, or has no room.
        """
        if len(set(slots)) != len(slots) or len(slots) != len(counts) or not slots:
            raise ModelError(f"{len(counts)} counts for the slots {list(slots)}: each slot once, each with its count")
        for slot, count in zip(slots, counts, strict=True):
            if not 0 <= slot < self.slots:
                raise ModelError(f"there is no slot {slot}: the cache has {self.slots}")
            if count < 1 or self.lengths[slot] + count > self.max_tokens:
                raise ModelError(
                    f"slot {slot} holds {self.lengths[slot]} tokens and cannot take {count} more",
                    hint=f"a slot holds at most {self.max_tokens} tokens",
                )
        return Turn(self, list(slots), list(counts))

    def truncate(self, slot: int, length: int) -> None:
        """Forget the tokens of a slot from `length` on."""
        if not 0 <= length <= self.lengths[slot]:
            raise ModelError(f"slot {slot} holds {self.lengths[slot]} tokens and cannot be cut to {length}")
        self.lengths[slot] = length

    def free(self, slot: int) -> None:
        """Forget a sequence; its slot may be used by another."""
        self.lengths[slot] = 0


class Turn:
    """New tokens for some slots of a `SlotCache`: what one forward pass of the decoder sees of it."""

    def __init__(self, cache: SlotCache, slots: list[int], counts: list[int]) -> None:
        self.cache = cache
        self.slots = slots
        self.counts = counts
        device = cache.keys.device
        self._lengths = [cache.lengths[slot] for slot in slots]
        self._keys_seen = max(length + count for length, count in zip(self._lengths, counts, strict=True))
        starts, count = torch.tensor(self._lengths), torch.tensor(counts)
        step = torch.arange(max(counts))
        # A padded query repeats the position of its row's last token, so that it always sees something.
        positions = starts[:, None] + torch.minimum(step, count[:, None] - 1)
        batch_at, step_at = (step < count[:, None]).nonzero(as_tuple=True)
        self.positions = positions.to(device)
        self._new = (batch_at.to(device), step_at.to(device))
        self._kept = (torch.tensor(slots)[batch_at].to(device), positions[batch_at, step_at].to(device))
        self._fresh = CausalMask(len(slots), max(counts), None, device) if not any(self._lengths) else None
        self._rows = _Rows(slots, device)
        self._biases: dict[int | None, Tensor] = {}

    def commit(self) -> None:
        """Count the new tokens as part of their sequences."""
        for slot, count in zip(self.slots, self.counts, strict=True):
            self.cache.lengths[slot] += count

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `KVCache.attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        (batch_at, step_at), (slot_at, position_at) = self._new, self._kept
        keys[slot_at, :, position_at] = k[batch_at, :, step_at].to(keys.dtype)
        values[slot_at, :, position_at] = v[batch_at, :, step_at].to(values.dtype)
        window = self.cache.config.window(layer)
        if self._fresh is not None:
            return attention(q, k, v, self._fresh, window)
        kept_keys, kept_values = self._rows.of(keys, self._keys_seen), self._rows.of(values, self._keys_seen)
        mixed = cached_attention(
            self._rows.spread(q), kept_keys.to(q.dtype), kept_values.to(q.dtype), self._bias(window)
        )
        return self._rows.gather(mixed)

    def _bias(self, window: int | None) -> Tensor:
        """0 where a new token sees a kept one and −∞ where not: [rows, seq, keys]."""
        if window not in self._biases:
            positions = self._rows.spread(self.positions)
            distance = positions[:, :, None] - torch.arange(self._keys_seen, device=positions.device)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            self._biases[window] = torch.zeros(hidden.shape, device=positions.device).masked_fill_(hidden, -math.inf)
        return self._biases[window]


class _Rows:
    """The slots of a turn as rows of the cache: a span of it if they lie close together, which copies nothing."""

    def __init__(self, slots: list[int], device: torch.device) -> None:
        self._low, self._size = min(slots), max(slots) - min(slots) + 1
        self._is_span = self._size <= 2 * len(slots)
        self._in_order = slots == list(range(self._low, self._low + self._size))
        at = torch.tensor(slots, device=device)
        self._at = at - self._low if self._is_span else at

    def of(self, kept: Tensor, tokens: int) -> Tensor:
        """The first `tokens` tokens of the rows, [rows, kv_heads, tokens, head_dim], of one layer's keys or values."""
        if self._is_span:
            return kept[self._low : self._low + self._size, :, :tokens]
        return kept[:, :, :tokens].index_select(0, self._at)

    def spread(self, batch: Tensor) -> Tensor:
        """A batch [batch, …] laid out as the rows are; rows that are not in the batch hold zeros."""
        if self._in_order or not self._is_span:
            return batch
        return batch.new_zeros(self._size, *batch.shape[1:]).index_copy_(0, self._at, batch)

    def gather(self, rows: Tensor) -> Tensor:
        """The batch out of the rows: undoes `spread`."""
        return rows if self._in_order or not self._is_span else rows.index_select(0, self._at)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from fresh pages, which are zero without being touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    fresh = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8))
    return fresh.view(dtype).view(shape)
