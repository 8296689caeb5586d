"""The state of a run before a step, and copies of it in the host's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liuyi.train.shards import Piece, is_sharded, laid_out, local_part
from liuyi.train.stored import Like


@dataclass(frozen=True)
class Snapshot:
    """The state before `step`: groups of tensors, and what JSON can say."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    """What all processes have in common."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What is of this process alone."""


@dataclass(frozen=True)
class Held:
    """A snapshot in the host's memory: of each tensor the part that this process holds, as training does not change."""

    step: int
    parts: Mapping[str, tuple[Piece, Tensor]]
    state: Mapping[str, Any]
    own: Mapping[str, Any]

    def group(self, name: str, like: Like | None = None) -> Iterator[tuple[str, Tensor]]:
        """As `Stored.group`."""
        for full, (piece, values) in self.parts.items():
            group, _, short = full.partition("/")
            if group == name:
                yield short, _like(like(short) if like else None, piece, values)


def _like(like: Tensor | None, piece: Piece, values: Tensor) -> Tensor:
    """The part of a tensor as the same part of one that is cut up as `like` is."""
    if like is None or not is_sharded(like) or like.ndim != len(piece.whole):
        return values
    tensor = laid_out(piece.whole, values.dtype, like)
    local_part(tensor)[1].copy_(values)
    return tensor


def held_parts(snapshot: Snapshot) -> dict[str, tuple[Piece, Tensor]]:
    """What this process holds of a snapshot, by group and name."""
    return {
        f"{group}/{name}": local_part(tensor)
        for group, tensors in snapshot.tensors.items()
        for name, tensor in tensors.items()
    }


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory."""
    copies = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies
