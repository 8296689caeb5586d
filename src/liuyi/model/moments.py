"""What goes into a model's matrices when it reads text: the sum of x·xᵀ over the inputs of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from liuyi.core.errors import ModelError
from liuyi.model.attention import CausalMask
from liuyi.model.decoder import Decoder, Linear


def moments(model: Decoder, texts: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
    """For one layer after the other, Σ x·xᵀ of each of its matrices by name: float32 [columns, columns].

    Taken over all tokens of the texts, which are token ids; they are read layer by layer, so that the sums of one layer
    are all that is kept. An expert that no token goes to has none. Raises ModelError where the model computes what is
    no number.
    """
    with torch.inference_mode():
        tokens = [torch.as_tensor(text, device=model.device)[None] for text in texts]
        streams = [model.model.embed_tokens(row) for row in tokens]
        ropes = [model.rope(torch.arange(row.shape[1], device=row.device)[None]) for row in tokens]
        masks = [CausalMask(1, row.shape[1], None, row.device) for row in tokens]
    for index, block in enumerate(model.model.layers):
        with torch.inference_mode(), _summed(block, f"model.layers.{index}.") as sums:
            read = zip(streams, ropes, masks, strict=True)
            streams = [block(stream, stream.dtype, rope, mask, None) for stream, rope, mask in read]
        for name, found in sums.items():
            if not found.isfinite().all():
                raise ModelError("the model computes what is no number on this text", where=f"the inputs of {name}")
        yield sums


@contextmanager
def _summed(block: nn.Module, prefix: str) -> Iterator[dict[str, Tensor]]:
    sums: dict[str, Tensor] = {}

    def watch(name: str, layer: Linear) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2).float()
            sums[prefix + name] = sums.get(prefix + name, 0) + x.T @ x

        return layer.register_forward_pre_hook(look)

    watched = [watch(name, layer) for name, layer in block.named_modules() if isinstance(layer, Linear)]
    try:
        yield sums
    finally:
        for handle in watched:
            handle.remove()
