"""A decoder's configuration in the metadata of a GGUF file: read and written.

    config = read_config(file)
    metadata, tensors, notes = config_metadata(config)

What llama.cpp cannot compute is refused; where it computes something a little different, a note says what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_vocabulary import end_ids, token_list
from liuyi.model.rope import rope_frequencies, yarn_attention_factor

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Family → llama.cpp's name of the architecture."""

ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's scaling is a tensor in the file: what the frequency of each pair is divided by."""

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
_MOST = 1 << 24
"""No size in a file is believed beyond this."""


def read_config(file: GGUF) -> DecoderConfig:
    """The configuration of a file's model. Raises ModelError naming what is missing or not supported."""
    values = file.metadata
    arch = str(values.get("general.architecture"))
    if arch not in ARCHITECTURES.values():
        supported = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ModelError(
            f"the architecture '{arch}' is not supported", where=str(file.path), hint=f"supported: {supported}"
        )
    try:
        heads, hidden = values[f"{arch}.attention.head_count"], values[f"{arch}.embedding_length"]
        window, layers = values.get(f"{arch}.attention.sliding_window"), values[f"{arch}.block_count"]
        sizes = {
            "vocab_size": len(token_list(file)),
            "hidden_size": hidden,
            "intermediate_size": values[f"{arch}.feed_forward_length"],
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": values.get(f"{arch}.attention.head_count_kv", heads),
            "head_dim": values.get(f"{arch}.attention.key_length") or hidden // heads,
            "max_position_embeddings": values.get(f"{arch}.context_length", 2048),
        }
        for name, size in sizes.items():
            if isinstance(size, int) and size > _MOST:
                raise ModelError(f"is {size}, more than {_MOST}", where=name)
        ends = end_ids(file)
        config = DecoderConfig(
            family="mistral" if arch == "llama" and window else arch,
            **sizes,
            rope_theta=float(values.get(f"{arch}.rope.freq_base", 10_000.0)),
            rope_scaling=_rope_scaling(file, arch),
            # Single precision in the file: 1e-5 would come back as 9.999999747378752e-06.
            rms_norm_eps=float(f"{values.get(f'{arch}.attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
            tie_word_embeddings="output.weight" not in file.tensor_names,
            attention_bias="blk.0.attn_q.bias" in file.tensor_names,
            qk_norm="blk.0.attn_q_norm.weight" in file.tensor_names,
            sliding_window=window or None,
            bos_token_id=values.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=ends[0] if len(ends) == 1 else ends or None,
            pad_token_id=values.get("tokenizer.ggml.padding_token_id"),
        )
    except KeyError as error:
        raise ModelError(f"has no '{error.args[0]}' in its metadata", where=str(file.path)) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"its metadata are not those of a {arch} model: {error}", where=str(file.path)) from error
    except ModelError as error:
        where = error.where if str(file.path) in error.where else f"{file.path}, {error.where}"
        raise ModelError(error.message, where=where, hint=error.hint) from error
    if config.rope_type == "llama3" and not torch.allclose(rope_factors(config), _factors(file), rtol=1e-4):
        raise ModelError(f"the '{ROPE_FACTORS}' are not those of a Llama 3 model", where=str(file.path))
    return config


def _rope_scaling(file: GGUF, arch: str) -> dict[str, Any] | None:
    get = file.metadata.get
    original = get(f"{arch}.rope.scaling.original_context_length")
    if ROPE_FACTORS in file.tensor_names:
        factor = float(_factors(file).max())
        return {
            **{"rope_type": "llama3", "factor": float(f"{factor:.6g}"), **_LLAMA3},
            "original_max_position_embeddings": original or _LLAMA3_CONTEXT,
        }
    factor = float(get(f"{arch}.rope.scaling.factor", get(f"{arch}.rope.scale_linear", 1.0)))
    kind = get(f"{arch}.rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        for name in _YARN_BETAS:
            if (beta := get(f"{arch}.rope.scaling.yarn_{name}")) is not None:
                scaling[name] = float(beta)
        attention = float(get(f"{arch}.rope.scaling.attn_factor", 1.0))
        if attention != 1.0:
            scaling["attention_factor"] = attention * yarn_attention_factor({"factor": factor})
    return scaling


def _factors(file: GGUF) -> Tensor:
    """Llama 3's factors in a file, one for each pair."""
    factors = file.tensor(ROPE_FACTORS)
    arch = file.metadata["general.architecture"]
    heads, hidden = file.metadata[f"{arch}.attention.head_count"], file.metadata[f"{arch}.embedding_length"]
    pairs = (file.metadata.get(f"{arch}.attention.key_length") or hidden // heads) // 2
    if factors.shape != (pairs,):
        raise ModelError(
            f"the tensor '{ROPE_FACTORS}' has the shape {list(factors.shape)}; its metadata ask for {pairs}"
        )
    return factors


def rope_factors(config: DecoderConfig) -> Tensor:
    """What Llama 3's scaling divides the plain frequency of each pair by, [head_dim / 2] float32."""
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    return plain / rope_frequencies(config)


def config_metadata(config: DecoderConfig) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """What a file says of a configuration, the tensors that belong to it, and what llama.cpp does otherwise.

    Raises ModelError for what llama.cpp has not.
    """
    if config.family not in ARCHITECTURES:
        raise ModelError(f"{config.family} models are not written as GGUF", hint="export them as a folder: --to hf")
    arch = ARCHITECTURES[config.family]
    if config.family == "qwen3" and config.attention_bias:
        raise ModelError("llama.cpp's Qwen3 has no biases", where="attention_bias")
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.vocab_size": config.vocab_size,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.rope.freq_base": config.rope_theta,
    }
    notes = []
    if config.sliding_window is not None:
        metadata[f"{arch}.attention.sliding_window"] = config.sliding_window
        if config.sliding_window < config.max_position_embeddings:
            notes.append(
                f"llama.cpp has no sliding window for {arch}: beyond {config.sliding_window} tokens it sees more "
                "than the model was trained to"
            )
        if config.layer_types:
            raise ModelError("a window in some layers only cannot be written", where="layer_types")
    scaling, tensors = _scaling_metadata(config, f"{arch}.rope.scaling")
    return {**metadata, **scaling}, tensors, notes


def _scaling_metadata(config: DecoderConfig, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    scaling: Mapping[str, Any] = config.rope_scaling or {}
    original = scaling.get("original_max_position_embeddings")
    context = {} if original is None else {f"{prefix}.original_context_length": original}
    if config.rope_type == "default":
        return {}, {}
    if config.rope_type == "llama3":
        return context, {ROPE_FACTORS: rope_factors(config)}
    if config.rope_type == "dynamic":
        raise ModelError("llama.cpp has no dynamic RoPE scaling", where="rope_scaling")
    metadata = {f"{prefix}.type": config.rope_type, f"{prefix}.factor": float(scaling["factor"]), **context}
    if config.rope_type == "yarn":
        if not scaling.get("truncate", True):
            raise ModelError("llama.cpp has no YaRN without 'truncate'", where="rope_scaling")
        for name, only in _YARN_BETAS.items():
            if scaling.get(name, only) != only:
                raise ModelError(f"llama.cpp computes YaRN with {name} {only:g} only", where="rope_scaling")
        plain = yarn_attention_factor({"factor": scaling["factor"]})
        if not math.isclose(yarn_attention_factor(scaling), plain):
            metadata[f"{prefix}.attn_factor"] = yarn_attention_factor(scaling) / plain
    return metadata, {}
