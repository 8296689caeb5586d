"""Noise on the embeddings while training (NEFTune, arXiv 2310.05914): ±alpha / √(tokens · hidden), uniform.

    noise = Neftune(model, alpha=5, seed=1)
    Trainer(model, noise.seeded(batches), …)

Where conversations are packed into rows, `tokens` are those of each conversation. The noise is a function of seed and
batch, and goes on from one micro-batch to the next: a resumed run sees the same, and so does one that computes the
same rows in other parts. In evaluation mode there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from liuyi.core.digest import sha256_bytes
from liuyi.model.decoder import Decoder

B = TypeVar("B")


class Neftune:
    """Hooks on a decoder that add the noise."""

    def __init__(self, model: Decoder, alpha: float, seed: int) -> None:
        self.alpha, self.seed = alpha, seed
        self._generator = torch.Generator()
        self._hidden_size = model.config.hidden_size
        self._lengths: Tensor | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end)
        model.model.embed_tokens.register_forward_hook(self._add)

    def seeded(
        self, batches: Callable[[int], Sequence[B]], before: tuple[int, int] = (0, 0)
    ) -> Callable[[int], Sequence[B]]:
        """The same batches; the noise begins anew with each.

        Where they are the share of one process, `before` are the rows of the shares before it and the tokens of a row:
        a row has the noise that it has in the whole batch.
        """
        rows, seq_len = before

        def batch(index: int) -> Sequence[B]:
            self._generator.manual_seed(int(sha256_bytes(f"{self.seed}/{index}".encode())[:15], 16))
            for _ in range(rows):
                torch.rand(seq_len, self._hidden_size, generator=self._generator)
            return batches(index)

        return batch

    def _begin(self, model: Decoder, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if model.training:
            segments = kwargs.get("segments")
            self._lengths = segment_lengths(torch.zeros_like(args[0]) if segments is None else segments)

    def _add(self, embedding: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self._lengths is None:
            return None
        # Drawn on the CPU, where it does not depend on the device.
        noise = torch.rand(output.shape, generator=self._generator).to(output.device) * 2 - 1
        sizes = (self._lengths * output.shape[-1]).rsqrt() * self.alpha
        return output + (noise * sizes[..., None]).to(output.dtype)

    def _end(self, model: Decoder, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._lengths = None


def segment_lengths(segments: Tensor) -> Tensor:
    """For every token [rows, seq] how many tokens its segment has, float32."""
    counts = torch.zeros(segments.shape[0], int(segments.max()) + 1, device=segments.device)
    counts.scatter_add_(1, segments, torch.ones_like(segments, dtype=torch.float32))
    return counts.gather(1, segments)
