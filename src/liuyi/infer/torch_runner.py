"""The decoder as a runner: tokens in, logits out.

The tokens of all sequences are packed one after the other, so that the matrix products see no padding and the whole
step is one pass over the weights. Only attention looks at sequences, group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from liuyi.infer.scheduler import Chunk
from liuyi.model.cache import SlotCache, Turn
from liuyi.model.decoder import Decoder

_UNEVEN = 4
"""No chunk of a group is shorter than the longest by more than this factor: attention pads to the longest."""


class ModelRunner:
    """Runs the decoder over chunks of many sequences, and holds their keys and values."""

    def __init__(self, model: Decoder, slots: int, max_tokens: int) -> None:
        self.model = model
        self.device = model.device
        self.cache = SlotCache(model.config, slots, max_tokens, dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], wanted: Sequence[int]) -> Tensor:
        """Read the chunks; logits [sum(wanted), vocab] float32 after the last `wanted[i]` tokens of each, in order."""
        tokens: list[int] = []
        groups: list[_Group] = []
        ends = [0] * len(chunks)
        for members in _groups(chunks):
            counts = [chunks[at].count for at in members]
            turn = self.cache.extend([chunks[at].sequence.slot for at in members], counts)
            groups.append(_Group(turn, counts, len(tokens)))
            for at in members:
                tokens += chunks[at].tokens
                ends[at] = len(tokens)
        hidden = self._forward(torch.tensor(tokens, device=self.device), groups)
        for group in groups:
            group.turn.commit()
        rows = [end - count + at for end, count in zip(ends, wanted, strict=True) for at in range(count)]
        return self.model.logits(hidden[rows]).float().cpu()

    def free(self, slot: int) -> None:
        """Forget a sequence."""
        self.cache.free(slot)

    def _forward(self, tokens: Tensor, groups: Sequence[_Group]) -> Tensor:
        """Hidden states [tokens, hidden] after the packed tokens [tokens]."""
        if len(groups) == 1 and groups[0].is_even:
            # Nothing to pack: the tokens are the rows already.
            return torch.as_tensor(self.model(tokens.view(groups[0].shape), cache=groups[0].turn)).flatten(0, 1)
        return torch.as_tensor(self.model(tokens[:, None], cache=_Packed(groups))).flatten(0, 1)


class _Group:
    """Chunks of similar length: where their tokens lie in the packed batch, and how to lay them out as rows."""

    def __init__(self, turn: Turn, counts: Sequence[int], begin: int) -> None:
        self.turn = turn
        self.shape = (len(counts), max(counts))
        self.span = slice(begin, begin + sum(counts))
        count = torch.tensor(counts)[:, None]
        step = torch.arange(self.shape[1])
        self.is_even = len(set(counts)) == 1
        # A row's padding repeats its last token; what attention makes of it is dropped.
        self._laid_out = (count.cumsum(0) - count + torch.minimum(step, count - 1)).flatten()
        self._real = (step < count).flatten().nonzero()[:, 0]
        self.positions = self.pack(turn.positions.flatten())

    def lay_out(self, packed: Tensor) -> Tensor:
        """Packed tokens [tokens, heads, 1, head_dim] of the whole batch as rows [rows, heads, seq, head_dim]."""
        own = packed[self.span, :, 0]
        if not self.is_even:
            own = own[self._laid_out.to(own.device)]
        return own.view(*self.shape, *own.shape[1:]).transpose(1, 2)

    def pack(self, laid_out: Tensor) -> Tensor:
        """The real tokens out of [rows · seq, …]."""
        return laid_out if self.is_even else laid_out[self._real.to(laid_out.device)]


class _Packed:
    """A `KVCache` for a batch of single tokens [tokens, 1] that belong to the sequences of several groups."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self._groups = groups
        self.positions = torch.cat([group.positions for group in groups])[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `KVCache.attend`; q, k, v and the result are [tokens, heads, 1, head_dim]."""
        mixed = []
        for group in self._groups:
            rows = group.turn.attend(layer, group.lay_out(q), group.lay_out(k), group.lay_out(v))
            mixed.append(group.pack(rows.transpose(1, 2).flatten(0, 1)))
        return torch.cat(mixed)[:, :, None]


def _groups(chunks: Sequence[Chunk]) -> Iterator[list[int]]:
    """Indices of chunks whose attention is computed together, in the order of their slots where they are alike."""
    counts, slots = [chunk.count for chunk in chunks], [chunk.sequence.slot for chunk in chunks]
    order = sorted(range(len(chunks)), key=lambda at: (-counts[at], slots[at]))
    group: list[int] = []
    for at in order:
        if group and _UNEVEN * counts[at] < counts[group[0]]:
            yield group
            group = []
        group.append(at)
    if group:
        yield group
