"""Random models of some ten thousand values, for tests that need one and not a particular one."""

from __future__ import annotations

from pathlib import Path

from liuyi.model.checkpoint import save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer


def small_model(vocab_size: int, seed: int = 1, std: float = 0.02, kv_heads: int = 1) -> Decoder:
    """A Qwen3 with token 0 for its end."""
    config = DecoderConfig(
        family="qwen3",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        head_dim=16,
        tie_word_embeddings=True,
        qk_norm=True,
        eos_token_id=0,
    )
    model = Decoder(config)
    init_weights(model, seed, std)
    return model


def save_llama(folder: Path, tokenizer: Tokenizer, context: int) -> Decoder:
    """A Llama written to a folder with its tokenizer; the same each time."""
    config = DecoderConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.eos_id,
    )
    model = Decoder(config)
    init_weights(model, seed=1, std=0.2)
    save_model(folder, model, tokenizer, {})
    return model
