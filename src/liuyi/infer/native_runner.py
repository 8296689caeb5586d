"""The native CPU kernels as a runner: the same blocks, one C call a step.

    runner = NativeRunner(model, blocks=1024, weights="int8", kv="bf16")
    logits = runner.logits(batch)

Weights are packed once and the decoder is not kept. What a token gets is the same to the bit whatever else is in the
batch, and however its prompt was cut or cached. Against the decoder in float32: `fp32` differs by rounding only,
`bf16` by that of weights to bfloat16, `int8` and `int4` by that of weights and activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from liuyi.core.errors import ModelError
from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Floats, Ids
from liuyi.kernels.library import BatchView, KernelsError
from liuyi.kernels.model import KV_FORMATS, NativeModel, NativeShape
from liuyi.kernels.parts import WEIGHT_FORMATS, Part
from liuyi.model.adapter import Adapter
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import QuantMatrix
from liuyi.model.rope import Rope


class NativeRunner:
    """Runs a decoder's weights through the native library. See `Runner`."""

    device = "cpu"

    def __init__(
        self,
        model: Decoder,
        blocks: int,
        *,
        weights: str = "int8",
        kv: str = "bf16",
        threads: int | None = None,
    ) -> None:
        """`weights` is fp32, bf16, int8 or int4 (the head is int8 then), `kv` fp32, bf16 or int8. Weights that are
        in that format already are packed as they are.

        Raises KernelsAbsent if there is no native library, ModelError for a format that there is not.
        """
        for name, known in ((weights, WEIGHT_FORMATS), (kv, KV_FORMATS)):
            if name not in known:
                raise ModelError(f"there is no number format '{name}' here", hint=f"known: {', '.join(known)}")
        self.config: DecoderConfig = model.config
        self.blocks = blocks
        self.format = weights
        self.name = f"native {weights}, kv {kv}"
        self.stops = model.config.num_hidden_layers
        self.native = _packed(model, blocks, weights, kv, threads)
        self._angles = _Angles(model.config)
        self.block_bytes = self.native.block_bytes
        self.weight_bytes = self.native.weight_bytes

    def logits(self, batch: Batch) -> Tensor:
        """See `Runner.logits`."""
        out = torch.empty(len(batch.rows), self.config.vocab_size)
        self._run(batch, out, "logits")
        return out

    def choose(self, batch: Batch, draws: Draws | None = None) -> Ids:
        """See `Runner.choose`: logits stay in the threads' caches."""
        out = np.empty(len(batch.rows), np.int32)
        self._run(batch, out, "chosen", draws)
        return out

    def hidden(self, batch: Batch) -> Tensor:
        """See `Runner.hidden`."""
        out = torch.empty(len(batch.rows), self.config.hidden_size)
        self._run(batch, out, "hidden")
        return out

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot, in place of what was there. Raises ModelError if it does not fit the model."""
        adapter.check(self.config)
        self.native.drop_adapter(slot)
        for name, change in adapter.modules.items():
            layer, projection = int(name.split(".")[2]), name.rpartition(".")[2]
            up = change.up.float() * change.scale
            self.native.set_adapter(slot, layer, projection, _floats(change.down), _floats(up))

    def drop_adapter(self, slot: int) -> None:
        """Forget what is in a slot."""
        self.native.drop_adapter(slot)

    def close(self) -> None:
        """Give the memory of weights and cache back."""
        self.native.close()

    def _run(self, batch: Batch, out: Tensor | Ids, output: str, draws: Draws | None = None) -> None:
        _check(batch, self.config.hidden_size)
        if draws is not None:
            _check_draws(draws, len(batch.rows))
        cosines, sines, by_token = self._angles.of(batch)
        arrays = (batch.tokens, batch.counts, batch.lengths, batch.tables, batch.rows, batch.adapters, cosines, sines)
        sizes = (len(batch.tokens), len(batch.counts), batch.tables.shape[1], len(batch.rows), len(cosines), by_token)
        layers = batch.layers
        part = (0, 0, 0) if layers is None else (layers.begin, layers.end, layers.residual.ctypes.data)
        chosen = () if draws is None else (draws.temperatures.ctypes.data, draws.keys.ctypes.data)
        view = BatchView(*sizes, *(array.ctypes.data for array in arrays), *part, *chosen)
        address = out.data_ptr() if isinstance(out, Tensor) else out.ctypes.data
        self.native.forward(view, address, output)


def _check(batch: Batch, hidden_size: int) -> None:
    """What native code cannot see: that the arrays are as long as one another, and what they should be."""
    sequences = len(batch.counts)
    if not len(batch.lengths) == len(batch.tables) == len(batch.adapters) == sequences:
        raise KernelsError("counts, lengths, tables and adapters of a batch are for different numbers of sequences")
    for array in (batch.tokens, batch.counts, batch.lengths, batch.tables, batch.rows, batch.adapters):
        if array.dtype != np.int32 or not array.flags.c_contiguous:
            raise KernelsError("the arrays of a batch are C-contiguous int32", hint="make them with `ids`")
    if batch.layers is not None and sequences:
        residual = batch.layers.residual
        if residual.dtype != np.float32 or not residual.flags.c_contiguous:
            raise KernelsError("the residual stream of a piece is C-contiguous float32")
        if residual.shape != (batch.counts[-1], hidden_size):
            raise KernelsError(f"a residual stream {list(residual.shape)} for {batch.counts[-1]} tokens")


def _check_draws(draws: Draws, rows: int) -> None:
    for array, dtype in ((draws.temperatures, np.float32), (draws.keys, np.uint64)):
        if array.dtype != dtype or array.shape != (rows,) or not array.flags.c_contiguous:
            raise KernelsError(f"draws of {rows} rows are as many float32 temperatures and uint64 keys, C-contiguous")


_FIRST_ANGLES = 16_384
"""Positions in the first table, 4 MB of them with heads of 64: to make another in the middle of requests takes as long
as several steps, and leaves a thread of PyTorch spinning for as long again."""


class _Angles:
    """Cosines and sines of positions, in a table that grows with the longest sequence seen."""

    def __init__(self, config: DecoderConfig) -> None:
        self._rope = Rope(config)
        self._stretches_beyond = config.max_position_embeddings if config.rope_type == "dynamic" else None
        self._context = config.context_tokens
        self._longest = 0
        self._grow(min(self._context, _FIRST_ANGLES))

    def of(self, batch: Batch) -> tuple[Floats, Floats, bool]:
        """Both [positions, head_dim / 2] from position 0 on, or [tokens, head_dim / 2] and True."""
        room = batch.tables.shape[1] * BLOCK_TOKENS
        if room <= self._longest:
            return self._cosines, self._sines, False
        longest = min(int((batch.lengths + batch.counts).max(initial=0)), room)
        if self._stretches_beyond is not None and longest > self._stretches_beyond:
            return *self._compute(_positions(batch)), True
        if longest > self._longest:
            self._grow(max(longest, min(2 * longest, self._context)))
        return self._cosines, self._sines, False

    def _grow(self, longest: int) -> None:
        longest = min(longest, self._stretches_beyond or longest)
        self._cosines, self._sines = self._compute(np.arange(longest, dtype=np.int32))
        self._longest = longest

    def _compute(self, positions: NDArray[np.int32]) -> tuple[Floats, Floats]:
        # One row for each: with dynamic scaling a token's angles depend on its own position alone.
        cosines, sines = self._rope(torch.from_numpy(positions)[:, None])
        return cosines[:, 0, 0].contiguous().numpy(), sines[:, 0, 0].contiguous().numpy()


def _positions(batch: Batch) -> NDArray[np.int32]:
    """Position of every new token in its sequence, [n]."""
    spans = zip(batch.lengths.tolist(), batch.counts.tolist(), strict=True)
    return np.concatenate([np.arange(begin, begin + count, dtype=np.int32) for begin, count in spans])


def _packed(model: Decoder, blocks: int, weights: str, kv: str, threads: int | None) -> NativeModel:
    config = model.config
    if config.num_experts:
        raise KernelsError("the native kernels have no mixture of experts", hint="weights: fp32 or bf16")
    shape = NativeShape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        norm_eps=config.rms_norm_eps,
    )
    windows = [config.window(layer) or 0 for layer in range(shape.layers)]
    native = NativeModel(shape, windows=windows, kv=kv, blocks=blocks, threads=threads)

    def parts(prefix: str, names: Sequence[str], fmt: str = weights) -> list[Part]:
        return [_part(model.get_submodule(f"{prefix}.{name}"), fmt) for name in names]

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        native.pack("qkv", layer, weights, parts(f"{prefix}.self_attn", ("q_proj", "k_proj", "v_proj")))
        native.pack("output", layer, weights, parts(f"{prefix}.self_attn", ("o_proj",)))
        native.pack("gate_up", layer, weights, parts(f"{prefix}.mlp", ("gate_proj", "up_proj")))
        native.pack("down", layer, weights, parts(f"{prefix}.mlp", ("down_proj",)))
        for vector, name in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            native.set_vector(vector, layer, _floats(model.get_parameter(f"{prefix}.{name}.weight")))
        for vector in ("q_norm", "k_norm") if config.qk_norm else ():
            native.set_vector(vector, layer, _floats(model.get_parameter(f"{prefix}.self_attn.{vector}.weight")))
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    head_format = "int8" if weights == "int4" else weights
    native.pack("head", 0, head_format, [_part(head, head_format)])
    native.set_vector("final_norm", 0, _floats(model.model.norm.weight))
    embedding = _whole(model.model.embed_tokens)
    native.set_embedding(_floats(embedding) if weights == "fp32" else _bf16(embedding))
    return native


def _part(module: nn.Module, weights: str) -> Part:
    bias = getattr(module, "bias", None)
    kept_bias = None if bias is None else _floats(bias)
    if isinstance(module, QuantMatrix) and module.format == weights:
        minima = _bf16(module.weight_minimum) if weights == "int4" else None
        return Part(module.weight.numpy(), kept_bias, _bf16(module.weight_scale), minima)
    whole = _whole(module)
    return Part(_bf16(whole) if whole.dtype == torch.bfloat16 else _floats(whole), kept_bias)


def _whole(module: nn.Module) -> Tensor:
    """The matrix of a linear layer or embedding, whatever its format."""
    return torch.as_tensor(module.widened()).detach()  # type: ignore[operator]


def _floats(values: Tensor) -> Floats:
    array: Floats = values.detach().float().contiguous().numpy()
    return array


def _bf16(values: Tensor) -> NDArray[np.uint16]:
    array: NDArray[np.uint16] = (
        values.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
    )
    return array
