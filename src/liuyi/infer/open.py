"""Runners for a model, in the format asked for and sized to the memory there is.

runner = open_runner(model)                                # what is fastest here at int8's accuracy
runner = open_runner(model, weights="reference")           # the decoder as it is
runner = open_runner(model, weights="bf16", kv="int8", kv_tokens=200_000)
engine = Engine(runner, tokenizer)
"""

from __future__ import annotations

import logging
from typing import Literal

import psutil
import torch

from liuyi.infer.blocks import blocks_for
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.native_sampler import NativeSampler
from liuyi.infer.runner import BLOCK_TOKENS, Runner
from liuyi.infer.sampler import Sampler
from liuyi.infer.torch_runner import DTYPES, TorchRunner, kv_token_bytes
from liuyi.kernels.library import KernelsAbsent, KernelsError
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import quantization_of

logger = logging.getLogger("liuyi.infer")

Weights = Literal["auto", "reference", "fp32", "bf16", "int8", "int4"]
"""`reference`: torch, in the weights' own dtype. `auto`: native int8, or what the weights are quantised to, where there
are kernels, else the reference. Others: native; without kernels, or on a GPU, `fp32` and `bf16` are torch so too.
"""
KV = Literal["auto", "fp32", "bf16", "int8"]
"""How keys and values are kept. `auto`: in torch as they are computed; in native code int8 beside int8 and int4 weights
where heads are of whole groups of 64 columns (keys are rotated then, and nothing is lost against bf16), else bf16."""

KV_SHARE = 0.25
"""Part of the free memory that keys and values may take where nobody says how much."""
_VALUE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.25}
_TINY_PARAMETERS = 1_000_000
"""Models below this are run as they are: nothing is gained by native code, and a few bits of accuracy lost."""


def open_runner(
    model: Decoder,
    *,
    weights: Weights = "auto",
    kv: KV = "auto",
    slots: int = 64,
    max_tokens: int | None = None,
    kv_tokens: int | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Runner:
    """A runner with room for `kv_tokens` tokens or, when None, for `slots` sequences of `max_tokens` (the model's
    context when None) as far as a quarter of the free memory allows. A native runner copies the weights it needs.
    `compute_dtype` is that of the products of `reference`, the weights' own when None.

    Raises KernelsAbsent if int8 or int4 is asked for where there are no kernels, a GPU among it, and KernelsError if
    they cannot run the model.
    """
    most = blocks_for(kv_tokens) if kv_tokens else slots * blocks_for(max_tokens or model.config.context_tokens)
    if _is_native(model, weights):
        native_kv = _auto_kv(model, weights) if kv == "auto" else kv
        token_bytes = kv_token_bytes(model.config, _VALUE_BYTES[native_kv])
        blocks = most if kv_tokens else blocks_that_fit(token_bytes, "cpu", most)
        try:
            return NativeRunner(model, blocks, weights=_native_format(model, weights), kv=native_kv)
        except (KernelsAbsent, KernelsError) as error:
            if weights in ("int8", "int4"):
                raise
            logger.info("%s runs in torch: %s", model.config.family, error)
    elif weights in ("int8", "int4"):
        hint = "auto, fp32 or bf16; CUDA_VISIBLE_DEVICES= runs it on the CPU"
        raise KernelsAbsent(f"{weights} is multiplied by the native kernels, not on {model.device}", hint=hint)
    if weights in DTYPES:
        model = model.to(DTYPES[weights])
    kv_dtype = (compute_dtype or model.dtype) if kv == "auto" else DTYPES.get(kv)
    if kv_dtype is None:
        raise KernelsAbsent("keys and values in int8 need the native kernels", where="kv", hint="fp32 or bf16")
    token_bytes = kv_token_bytes(model.config, kv_dtype.itemsize)
    blocks = most if kv_tokens else blocks_that_fit(token_bytes, model.device, most)
    return TorchRunner(model, blocks, kv_dtype=kv_dtype, compute_dtype=compute_dtype)


def open_sampler(runner: Runner, slots: int) -> Sampler:
    """What draws tokens from a runner's logits: its native code, if it has some."""
    if isinstance(runner, NativeRunner):
        return NativeSampler(slots, runner.native)
    return Sampler(slots, runner.config.vocab_size)


def open_evaluated(model: Decoder, *, slots: int) -> Runner:
    """What an evaluation runs: the decoder as it is; one in few bits by the kernels that would serve it, if there are.

    Where to read which it was: the runner's `name`.
    """
    return open_runner(model, weights="auto" if quantization_of(model) else "reference", slots=slots)


def blocks_that_fit(bytes_per_token: float, device: str | torch.device, most: int) -> int:
    """How many blocks fit into a share of the memory that is free now; at least one, and no more than `most`."""
    device = torch.device(device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(most, int(KV_SHARE * free / (BLOCK_TOKENS * bytes_per_token))))


def _native_format(model: Decoder, weights: Weights) -> str:
    return weights if weights != "auto" else quantization_of(model) or "int8"


def _auto_kv(model: Decoder, weights: Weights) -> Literal["bf16", "int8"]:
    return "bf16" if weights in DTYPES or model.config.head_dim % 64 else "int8"


def _is_native(model: Decoder, weights: Weights) -> bool:
    if weights == "reference" or model.device.type != "cpu":
        return False
    return weights != "auto" or model.config.num_parameters >= _TINY_PARAMETERS
