"""The decoder as a runner: the reference, on any device that torch has.

runner = TorchRunner(model, blocks=1024)
logits = runner.logits(batch)

In float32 its log-probabilities are those of training's forward pass, up to the order in which sums are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Ids
from liuyi.infer.sampling import choose
from liuyi.infer.torch_cache import PagedCache
from liuyi.infer.torch_lora import AdapterBank
from liuyi.model.adapter import Adapter
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchRunner:
    """Runs a decoder over blocks of keys and values."""

    stops = 1

    def __init__(
        self,
        model: Decoder,
        blocks: int,
        *,
        kv_dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`compute_dtype` is that of the matrix products, the model's own when None; `kv_dtype` is how keys and values
        are kept, as they are computed when None."""
        self.compute_dtype = compute_dtype or model.dtype
        kv_dtype = kv_dtype or self.compute_dtype
        self.model = model.eval()
        self.config: DecoderConfig = model.config
        self.blocks = blocks
        self.block_bytes = BLOCK_TOKENS * kv_token_bytes(model.config, kv_dtype.itemsize)
        self.weight_bytes = model.config.num_parameters_read * model.dtype.itemsize
        self.format = _short(model.dtype)
        self.device = str(model.device)
        self.name = f"torch {self.format}"
        if kv_dtype != model.dtype:
            self.name += f", kv {_short(kv_dtype)}"
        self._adapters = AdapterBank(model)
        self.cache = PagedCache(model.config, blocks, kv_dtype, model.device)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """See `Runner.logits`."""
        return self.model.logits(self._forward(batch)).float().cpu()

    def choose(self, batch: Batch, draws: Draws | None = None) -> Ids:
        """See `Runner.choose`."""
        return choose(self.logits(batch), draws)

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> Tensor:
        """See `Runner.hidden`."""
        return self._forward(batch).float().cpu()

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """See `TakesAdapters`."""
        self._adapters.load(slot, adapter)

    def drop_adapter(self, slot: int) -> None:
        """See `TakesAdapters`."""
        self._adapters.drop(slot)

    def _forward(self, batch: Batch) -> Tensor:
        """Hidden states [rows, hidden] of the rows that are wanted."""
        device = self.model.device
        tokens = torch.from_numpy(batch.tokens).long().to(device)
        with self._adapters.applied(batch):
            hidden = self.model(tokens[:, None], cache=self.cache.turn(batch), compute_dtype=self.compute_dtype)
        return torch.as_tensor(hidden[torch.from_numpy(batch.rows).long().to(device), 0])


def kv_token_bytes(config: DecoderConfig, value_bytes: float) -> int:
    """Bytes of one token's keys and values over all layers."""
    return int(2 * value_bytes * config.num_hidden_layers * config.num_key_value_heads * config.head_dim)


def _short(dtype: torch.dtype) -> str:
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))
