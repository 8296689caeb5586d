"""The key-value cache: what the decoder asks of one, and one with a fixed number of slots.

cache = SlotCache(config, slots=64, max_tokens=512)
turn = cache.extend([3, 5], [7, 4])                     # 7 new tokens for slot 3, 4 for slot 5
hidden = model(tokens, cache=turn)                      # tokens [2, 7], the second row padded on the right
turn.commit()                                           # from now on these tokens count
cache.free(3)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from liuyi.core.errors import ModelError
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
    the rounding of sums that are taken in another order in batches of other shapes.
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
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
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
        starts = torch.tensor([cache.lengths[slot] for slot in slots])
        count = torch.tensor(counts)
        step = torch.arange(max(counts))
        # A padded query repeats the position of its row's last token, so that it always sees something.
        self.positions = (starts[:, None] + torch.minimum(step, count[:, None] - 1)).to(device)
        self._rows = torch.tensor(slots, device=device)
        real = step < count[:, None]
        self._batch_at, self._step_at = (index.to(device) for index in real.nonzero(as_tuple=True))
        self._slot_at = self._rows[self._batch_at]
        self._position_at = self.positions[self._batch_at, self._step_at]
        self._keys_seen = max(cache.lengths[slot] + n for slot, n in zip(slots, counts, strict=True))
        self._visible: dict[int | None, Tensor] = {}

    def commit(self) -> None:
        """Count the new tokens as part of their sequences."""
        for slot, count in zip(self.slots, self.counts, strict=True):
            self.cache.lengths[slot] += count

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `KVCache.attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self._slot_at, :, self._position_at] = k[self._batch_at, :, self._step_at].to(keys.dtype)
        values[self._slot_at, :, self._position_at] = v[self._batch_at, :, self._step_at].to(values.dtype)
        seen_keys = keys[self._rows, :, : self._keys_seen].to(q.dtype)
        seen_values = values[self._rows, :, : self._keys_seen].to(q.dtype)
        visible = self.visible(self.cache.config.window(layer))[:, None]
        return torch.nn.functional.scaled_dot_product_attention(
            q, seen_keys, seen_values, attn_mask=visible, enable_gqa=True
        )

    def visible(self, window: int | None) -> Tensor:
        """True where a new token sees a kept one: [batch, seq, keys]."""
        if window not in self._visible:
            distance = self.positions[:, :, None] - torch.arange(self._keys_seen, device=self.positions.device)
            sees = distance >= 0
            self._visible[window] = sees if window is None else sees & (distance < window)
        return self._visible[window]
