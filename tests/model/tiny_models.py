"""Tiny random models of every family, as `transformers` makes them and as we read them."""

from __future__ import annotations

from typing import Any

import torch

from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder

SHAPE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10_000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 6}),
    "llama3": ("Llama", {"rope_theta": 500_000.0, "rope_parameters": LLAMA3 | {"rope_theta": 500_000.0}}),
    "llama-biased": ("Llama", {"attention_bias": True, "head_dim": 12}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}}),
    "dynamic": (
        "Llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "yarn": ("Llama", {"rope_parameters": YARN}),
    "yarn-factors": (
        "Llama",
        {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}},
    ),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": YARN}),
}
"""Name → the family's class prefix in `transformers`, and what its configuration has of its own."""


def hf_model(name: str, seed: int = 0) -> Any:
    """A random model of `transformers`; norms and biases are random too, so that none can hide."""
    import transformers

    family, own = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, "initializer_range": 0.1, **own})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def our_model(model: Any) -> Decoder:
    """The same model as a `Decoder`."""
    decoder = Decoder(DecoderConfig.from_hf(model.config.to_dict()))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if decoder.lm_head is None:
        del weights["lm_head.weight"]
    decoder.load_state_dict(weights)
    return decoder


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
