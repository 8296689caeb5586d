"""Context parallel: each row's tokens are divided over ranks, for rows too long for one device.

    attend_across(model, world)             # once: keys and values are gathered where a layer attends
    batches = cut_rows(batches, world)      # every batch becomes this rank's tokens of the same rows

A row is cut into twice as many chunks as there are ranks, and rank r has chunk r from its head and chunk r from its
tail, so that all have as many pairs of query and key to go through. Each gathers the keys and values of the whole row:
they are few beside the queries where heads share them, and any mask works as it does on one device (Llama 3, arXiv
2407.21783, §3.3.2). Everything but attention looks at one token at a time and does not notice.

A cut batch has this rank's tokens, targets and positions, and the segments of the *whole* row; that is how the model
tells it from a row that it has all of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.model.attention import CausalMask, attention
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, segment_positions
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.world import World

Batches = Callable[[int], Sequence[Batch]]


def cut_rows(batches: Batches, world: World) -> Batches:
    """The same batches with this rank's tokens only; the sums of loss and count over the context ranks are those of the
    whole rows. One rank alone keeps them as they are."""
    if world.context_size == 1:
        return batches
    return lambda index: [cut(batch, world.context_rank, world.context_size) for batch in batches(index)]


def cut(batch: Batch, rank: int, ranks: int) -> Batch:
    """What one of `ranks` has of a batch: tokens, targets and positions [rows, seq / ranks], and all segments.

    Rows are padded to a multiple of 2 · ranks, as a segment of its own without targets.
    """
    missing = -batch.tokens.shape[1] % (2 * ranks)

    def part(values: Tensor, padding: int) -> Tensor:
        chunks = functional.pad(values, (0, missing), value=padding).chunk(2 * ranks, dim=1)
        return torch.cat((chunks[rank], chunks[-1 - rank]), dim=1)

    return Batch(
        tokens=part(batch.tokens, 0),
        targets=part(batch.targets, IGNORE),
        segments=functional.pad(batch.segments, (0, missing), value=-1),
        positions=part(batch.positions, 0),
    )


def attend_across(model: nn.Module, world: World) -> None:
    """Let the decoder in a model take cut batches: what it attends to is gathered from all context ranks, which must
    call it together. Whole rows, with a cache or without, it computes as before.

    Raises ModelError for dynamic RoPE scaling, whose angles depend on tokens that other ranks have.
    """
    if world.mesh is None or world.context_size == 1:
        return

    def bring_the_rest(decoder: Decoder, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
        segments = kwargs.get("segments")
        if segments is None or segments.shape == args[0].shape:
            return None
        context = GatheredContext(decoder.config, segments, world)
        return args, kwargs | {"segments": None, "cache": context}

    for decoder in [module for module in model.modules() if isinstance(module, Decoder)]:
        if decoder.config.rope_type == "dynamic":
            raise ModelError(
                "with dynamic RoPE scaling the rows cannot be divided over ranks",
                hint="set context: 1, or give the model another rope_scaling",
            )
        decoder.register_forward_pre_hook(bring_the_rest, with_kwargs=True)


class GatheredContext:
    """Attention of this rank's queries over the keys of the whole row: what stands in for a cache of earlier tokens.

    `segments` [batch, seq] are those of the whole rows.
    """

    def __init__(self, config: DecoderConfig, segments: Tensor, world: World) -> None:
        self.config = config
        self.world = world
        rank, ranks = world.context_rank, world.context_size
        batch, seq = segments.shape
        chunk = seq // (2 * ranks)
        ends = (rank + 1) * chunk, (2 * ranks - rank) * chunk
        positions = segment_positions(segments)
        self.positions = torch.cat([positions[:, end - chunk : end] for end in ends], dim=1)
        # What lies behind a chunk is hidden from it, so each has a mask that ends with it.
        self.masks = [CausalMask(batch, end, segments[:, :end], segments.device, queries=chunk) for end in ends]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [batch, heads, seq / ranks, head_dim] over the k, v that all ranks have."""
        gathered: Tensor = _GatherRows.apply(torch.stack((k, v)), self.world)  # type: ignore[no-untyped-call]
        keys, values = gathered.unbind()
        window = self.config.window(layer)
        mixed = [
            attention(part, keys[:, :, : mask.seq], values[:, :, : mask.seq], mask, window)
            for part, mask in zip(q.chunk(2, dim=2), self.masks, strict=True)
        ]
        return torch.cat(mixed, dim=2)


class _GatherRows(torch.autograd.Function):
    """[…, seq / ranks, head_dim] of each rank to [..., seq, head_dim] in the order of the row; gradients are summed and
    go back to the rank that the token belongs to."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, world: World) -> Tensor:
        ctx.world = world
        parts = [torch.empty_like(own) for _ in range(world.context_size)]
        with world.waiting():
            dist.all_gather(parts, own, group=_group(world))
        heads, tails = zip(*(part.chunk(2, dim=-2) for part in parts), strict=True)
        return torch.cat((*heads, *reversed(tails)), dim=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        world: World = ctx.world
        chunks = grad.chunk(2 * world.context_size, dim=-2)
        parts = [torch.cat((chunks[rank], chunks[-1 - rank]), dim=-2) for rank in range(world.context_size)]
        own = torch.empty_like(parts[0])
        with world.waiting():
            dist.reduce_scatter(own, parts, group=_group(world))
        return own, None


def _group(world: World) -> dist.ProcessGroup:
    assert world.mesh is not None
    return world.mesh.get_group("context")
