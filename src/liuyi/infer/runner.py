"""The model's part of a step: tokens in, logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from liuyi.infer.scheduler import Chunk
from liuyi.model.cache import SlotCache
from liuyi.model.decoder import Decoder


class ModelRunner:
    """Runs the decoder over chunks of many sequences, and holds their keys and values."""

    def __init__(self, model: Decoder, slots: int, max_tokens: int) -> None:
        weight = model.model.embed_tokens.weight
        self.model = model
        self.device = weight.device
        self.cache = SlotCache(model.config, slots, max_tokens, dtype=weight.dtype, device=weight.device)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], wanted: Sequence[int]) -> Tensor:
        """Read the chunks; logits [sum(wanted), vocab] float32 after the last `wanted[i]` tokens of each, in order."""
        rows: list[Tensor | None] = [None] * len(chunks)
        for group in _groups([chunk.count for chunk in chunks]):
            hidden = self._forward([chunks[at] for at in group])
            for row, at in enumerate(group):
                if wanted[at]:
                    end = chunks[at].count
                    rows[at] = hidden[row, end - wanted[at] : end]
        kept = [row for row in rows if row is not None]
        if not kept:
            return torch.empty(0, self.model.config.vocab_size)
        return self.model.logits(torch.cat(kept)).float().cpu()

    def free(self, slot: int) -> None:
        """Forget a sequence."""
        self.cache.free(slot)

    def _forward(self, chunks: Sequence[Chunk]) -> Tensor:
        longest = max(chunk.count for chunk in chunks)
        padded = [chunk.tokens + [0] * (longest - chunk.count) for chunk in chunks]
        turn = self.cache.extend([chunk.sequence.slot for chunk in chunks], [chunk.count for chunk in chunks])
        hidden = self.model(torch.tensor(padded, device=self.device), cache=turn)
        turn.commit()
        return torch.as_tensor(hidden)


def _groups(counts: Sequence[int]) -> Iterator[list[int]]:
    """Chunks that are run together, as indices: none is less than half as long as the longest of its group."""
    order = sorted(range(len(counts)), key=lambda at: -counts[at])
    group: list[int] = []
    for at in order:
        if group and 2 * counts[at] < counts[group[0]]:
            yield group
            group = []
        group.append(at)
    if group:
        yield group
