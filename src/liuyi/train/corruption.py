"""Silent corruption: bits that change in memory, and arithmetic that comes out differently the second time.

Machines do both without a word (Dixit et al. 2021, "Silent Data Corruptions at Scale"; Llama 3 lost six of its
466 interruptions to it). Two checks find them:

- *At rest*: the sum of all words of weights and optimiser state after one step must be their sum before the next.
- *Redundant step*: now and then a step is taken twice from the same state, and must come out the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from liuyi.train.world import World

_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_LOOSE = 0.02


class Corrupted(Exception):
    """A state that nobody wrote, or a result that does not repeat. The loop goes back to a checkpoint."""


def checksum(tensors: Iterable[Tensor]) -> int:
    """The sum of the 64-bit words of all tensors, modulo 2⁶⁴; any single flipped bit changes it."""
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        size = flat.numel() * flat.element_size()
        word = next(dtype for dtype in _WORDS if size % dtype.itemsize == 0 and flat.element_size() <= dtype.itemsize)
        if flat.storage_offset() * flat.element_size() % word.itemsize:
            # A part of another tensor that begins inside a word; its sum does not depend on where it lies.
            flat = flat.clone()
        sums.setdefault(flat.device, []).append(flat.view(word).sum(dtype=torch.int64))
    # To read a number waits for the device, so it is done once, not once a tensor.
    return in_64_bits(sum(int(torch.stack(there).sum()) for there in sums.values()))


def in_64_bits(total: int) -> int:
    """A sum of checksums as one."""
    return (total + 2**63) % 2**64 - 2**63


def agree(first: float, second: float, *, exactly: bool) -> bool:
    """Whether two results of one step are the same: to the bit, or to 2 % on devices that sum in no fixed order."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return first == second if exactly else math.isclose(first, second, rel_tol=_LOOSE)


def demand_sound(world: World, sound: bool, otherwise: str) -> None:
    """Raises Corrupted on every rank if it is not so on any."""
    wrong = [str(rank) for rank, found in enumerate(world.gather(float(not sound))) if found]
    if wrong:
        raise Corrupted(otherwise + (f" (rank {', '.join(wrong)})" if world.size > 1 else ""))


def same_as_first_copy(world: World, checksum: int) -> bool:
    """Whether what this rank holds is what the rank in its place holds in the first copy of the weights."""
    layout = world.layout
    # Context ranks are copies too, unless the weights are cut over them as over the shards.
    copies = layout.replicate * (layout.context if layout.shard == 1 else 1)
    place = world.rank % (layout.size // copies)
    # A float64 has no room for all 64 bits.
    halves = divmod(checksum % 2**64, 2**32)
    return [world.gather(float(half))[place] for half in halves] == list(halves)
