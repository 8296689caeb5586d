"""llama.cpp loads the GGUF files that are written here, cuts text as the tokenizer does and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import LlamaCpp
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.gguf_export import export_gguf
from liuyi.model.gguf_import import load_gguf
from liuyi.model.tokenizer import Tokenizer, train_bpe

LINES = [
    "The lamp in the kitchen is on, and the door of the garage is closed since 22:45.\n",
    "    def f(x):\n\n        return x ** 2 + 1.5  # ünïcödé 中文 🙂\n",
    "It's the 3rd of 1,234 tests; don't you'LL    see\t\ttabs and  spaces?\r\n",
    "Turn off the light in the bedroom at half past nine, then lock the front door.\n",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "tie_word_embeddings": False},
    "llama with biases": {"family": "llama", "attention_bias": True, "head_dim": 32},
    "llama3": {
        "family": "llama",
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear": {"family": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {
        "family": "llama",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "yarn with a factor": {
        "family": "qwen3",
        "qk_norm": True,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.3,
        },
    },
    "mistral": {"family": "mistral", "tie_word_embeddings": False, "num_key_value_heads": 1},
    "qwen2": {"family": "qwen2", "attention_bias": True},
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 32},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(LINES * 2, 400)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "no dynamic RoPE scaling"),
    "betas": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 2.0}}, "beta_slow 1 only"),
    "truncate": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "YaRN without 'truncate'"),
    "qwen3": ({"family": "qwen3", "qk_norm": True, "attention_bias": True}, "Qwen3 has no biases"),
    "layers": (
        {
            **{"family": "qwen2", "attention_bias": True, "sliding_window": 8},
            "layer_types": ("full_attention", "sliding_attention"),
        },
        "some layers only",
    ),
}


def _random_model(tokenizer: Tokenizer, **own: Any) -> Decoder:
    model = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **{**SHAPE, **own}))
    init_weights(model, seed=1, std=0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    return model


def _logits(model: Decoder, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model.logits(model(torch.tensor([tokens])))[0].numpy()


def _greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_computes_the_same_there(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = _random_model(tokenizer, **FAMILIES[name])
    report = export_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    assert (report.notes, report.relative_rms_error) == ([], 0)
    tokens = [at % tokenizer.vocab_size for at in range(7, 7 * 120, 7)]
    ours, theirs = _logits(model, tokens), LlamaCpp(tmp_path / "m.gguf").logits(tokens)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    again, _ = load_gguf(tmp_path / "m.gguf")
    assert np.abs(_logits(again, tokens) - ours).max() < 1e-5 * np.abs(ours).max()


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_it_cannot_compute_is_refused(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        export_gguf(_random_model(tokenizer, **{"family": "llama", **own}), tokenizer, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_window_that_it_ignores_is_noted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = _random_model(tokenizer, family="mistral", sliding_window=40)
    report = export_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    assert "beyond 40 tokens" in report.notes[0]
    tokens = list(range(9, 9 + 80))
    ours, theirs = _logits(model, tokens), LlamaCpp(tmp_path / "m.gguf").logits(tokens)
    assert np.abs(ours - theirs)[:40].max() < 1e-4 * np.abs(ours).max() < np.abs(ours - theirs)[40:].max()
    again, _ = load_gguf(tmp_path / "m.gguf")
    assert np.abs(_logits(again, tokens) - ours).max() < 1e-5 * np.abs(ours).max()


def test_weights_that_do_not_fit_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = _random_model(tokenizer, family="llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e9
        export_gguf(model, tokenizer, tmp_path / "m.gguf", "BF16")
        with pytest.raises(ModelError, match=r"'blk\.1\.ffn_up\.weight' holds values too large for F16"):
            export_gguf(model, tokenizer, tmp_path / "n.gguf", "F16")
        model.model.norm.weight[0] = float("nan")
        with pytest.raises(ModelError, match=r"'output_norm\.weight' holds values that are not finite"):
            export_gguf(model, tokenizer, tmp_path / "n.gguf", "BF16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Decoder:
    """A model trained from nothing until it knows the lines by heart."""
    model = _random_model(tokenizer, family="llama")
    init_weights(model, seed=1, std=0.05)
    rows = [tokenizer.encode(f"{line}<|endoftext|>") for line in LINES]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = functional.cross_entropy(model.logits(model(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return model


@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_a_model_trained_here_says_the_same_there(
    form: str, trained: Decoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    report = export_gguf(trained, tokenizer, tmp_path / "m.gguf", form)
    assert report.relative_rms_error < {"F16": 3e-4, "BF16": 3e-3, "Q8_0": 1e-2, "Q4_0": 0.1}[form]
    theirs = LlamaCpp(tmp_path / "m.gguf")
    ours, _ = load_gguf(tmp_path / "m.gguf")
    for line in LINES:
        tokens = tokenizer.encode(line)
        assert theirs.encode(line) == tokens
        prompt, rest = tokens[:4], tokens[4:]
        assert _greedy(trained, prompt, len(rest)) == rest
        assert _greedy(ours, prompt, len(rest)) == rest
        assert theirs.greedy(prompt, len(rest)) == rest


def test_text_is_cut_the_same_there(trained: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_gguf(trained, tokenizer, tmp_path / "m.gguf", "F16")
    theirs = LlamaCpp(tmp_path / "m.gguf")
    chance = np.random.default_rng(1)
    letters = list("aZéß你あ한ع \t\n\r.,'!_-/🙂0123456789½sSdD")
    texts = ["".join(chance.choice(letters, size=30)) for _ in range(300)]
    for text in [*texts, "<|im_start|>user\nHello<|im_end|>\n", "a<|endoftext|>b", "x" * 300, ""]:
        assert theirs.encode(text) == tokenizer.encode(text), text
    vocab = theirs.vocab
    assert (vocab.n_vocab, vocab.get_add_bos(), vocab.token_eos()) == (tokenizer.vocab_size, False, tokenizer.eos_id)
    assert vocab.token_eot() == tokenizer.token_id("<|im_end|>")
    assert [at for at in range(vocab.n_vocab) if vocab.is_eog(at)] == list(tokenizer.stop_ids)
    assert theirs.model.get_default_chat_template() == tokenizer.chat_template
