"""Which part of a tensor a process holds, and which of the processes that hold the same part writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Piece:
    """A box inside a tensor of shape `whole`."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def all_of(cls, shape: Sequence[int]) -> Piece:
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[int]]) -> Piece:
        return cls(tuple(value["whole"]), tuple(value["offset"]), tuple(value["shape"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_all(self) -> bool:
        return self.shape == self.whole

    def overlap(self, other: Piece) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both boxes cover, as slices of this one and of the other; None where they do not meet."""
        mine, others = [], []
        for at, size, other_at, other_size in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            start, end = max(at, other_at), min(at + size, other_at + other_size)
            if start >= end:
                return None
            mine.append(slice(start - at, end - at))
            others.append(slice(start - other_at, end - other_at))
        return tuple(mine), tuple(others)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which each process holds a part or a copy."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> tuple[Piece, Tensor]:
    """Which part of a tensor this process holds, and that part."""
    if not is_sharded(tensor):
        return Piece.all_of(tensor.shape), tensor.detach()
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[attr-defined]
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return Piece(tuple(tensor.shape), tuple(chunk.offsets), tuple(chunk.sizes)), local.detach()


def laid_out(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """An empty tensor cut, or copied, among the processes as the DTensor `like` is, which may have other sizes."""
    from torch.distributed import tensor as distributed

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distributed.empty(*shape, dtype=dtype, device_mesh=mesh, placements=placements)


def share_out(held: Sequence[Mapping[str, tuple[Piece, int]]]) -> list[set[str]]:
    """What each process writes, of the parts (and their bytes) that each holds: every part once.

    A part that several hold goes to the one with the fewest bytes so far, the lowest rank of these.
    """
    holders: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank, parts in enumerate(held):
        for name, (piece, _) in parts.items():
            if 0 not in piece.shape or piece.is_all:
                holders.setdefault((name, piece.offset), []).append(rank)
    loads = [0] * len(held)
    written: list[set[str]] = [set() for _ in held]
    for (name, _), ranks in sorted(holders.items()):
        rank = min(ranks, key=lambda rank: (loads[rank], rank))
        loads[rank] += held[rank][name][1]
        written[rank].add(name)
    return written


def gather_json(value: Any, group: ProcessGroup) -> list[Any]:
    """What each process of the group gives, in the order of their ranks, sent as JSON."""
    import torch.distributed as dist

    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    count = dist.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([data.numel()]), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: data.numel()] = data
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(count)]
    dist.all_gather(texts, padded, group=group)
    return [json.loads(text[: int(size)].numpy().tobytes().decode()) for text, size in zip(texts, sizes, strict=True)]
