"""A GGUF file as a decoder and a tokenizer.

model, tokenizer = load_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
save_model(folder, model, tokenizer)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from liuyi.core.errors import ModelError, did_you_mean
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.gguf import GGUF
from liuyi.model.tokenizer import Tokenizer

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4

_LLAMA3_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def load_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer of a GGUF file; quantised weights are widened to `dtype`.

    Raises ModelError if the architecture, the tokenizer or a tensor's format is not supported, naming it.
    """
    file = GGUF(path)
    config = _config(file)
    with torch.device("meta"):
        model = Decoder(config)
    expected = model.state_dict()
    weights: dict[str, Tensor] = {}
    for name in file.tensor_names:
        ours = _our_name(name)
        if ours not in expected:
            raise ModelError(f"holds the tensor '{name}', which a {config.family} model has not", where=str(path))
        tensor = file.tensor(name)
        if tensor.shape != expected[ours].shape:
            shapes = f"{list(tensor.shape)}; its metadata asks for {list(expected[ours].shape)}"
            raise ModelError(f"the tensor '{name}' has the shape {shapes}", where=str(path))
        if file.metadata["general.architecture"] == "llama":
            tensor = _halves_of_heads(ours, tensor, config)
        weights[ours] = tensor.to(dtype)
    missing = [name for name in expected if name not in weights]
    if missing:
        raise ModelError(f"has no tensor for '{missing[0]}'", where=str(path))
    model.load_state_dict(weights, assign=True)
    model.reset_buffers("cpu")
    return model, _tokenizer(file)


def _config(file: GGUF) -> DecoderConfig:
    values = file.metadata
    arch = values.get("general.architecture")
    if arch not in ("llama", "qwen2", "qwen3"):
        raise ModelError(
            f"the architecture '{arch}' is not supported", where=str(file.path), hint="supported: llama, qwen2, qwen3"
        )
    try:
        heads, hidden = values[f"{arch}.attention.head_count"], values[f"{arch}.embedding_length"]
        window = values.get(f"{arch}.attention.sliding_window")
        return DecoderConfig(
            family="mistral" if arch == "llama" and window else arch,
            vocab_size=len(values["tokenizer.ggml.tokens"]),
            hidden_size=hidden,
            intermediate_size=values[f"{arch}.feed_forward_length"],
            num_hidden_layers=values[f"{arch}.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=values.get(f"{arch}.attention.head_count_kv", heads),
            head_dim=values.get(f"{arch}.attention.key_length") or hidden // heads,
            max_position_embeddings=values.get(f"{arch}.context_length", 2048),
            rope_theta=float(values.get(f"{arch}.rope.freq_base", 10_000.0)),
            rope_scaling=_rope_scaling(file, arch),
            # Single precision in the file: 1e-5 would come back as 9.999999747378752e-06.
            rms_norm_eps=float(f"{values.get(f'{arch}.attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
            tie_word_embeddings="output.weight" not in file.tensor_names,
            attention_bias="blk.0.attn_q.bias" in file.tensor_names,
            qk_norm="blk.0.attn_q_norm.weight" in file.tensor_names,
            sliding_window=window or None,
            bos_token_id=values.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=values.get("tokenizer.ggml.eos_token_id"),
            pad_token_id=values.get("tokenizer.ggml.padding_token_id"),
        )
    except KeyError as error:
        raise ModelError(f"has no '{error.args[0]}' in its metadata", where=str(file.path)) from None
    except (TypeError, ZeroDivisionError) as error:
        raise ModelError(f"its metadata are not those of a {arch} model: {error}", where=str(file.path)) from error
    except ModelError as error:
        raise ModelError(error.message, where=f"{file.path}, {error.where}", hint=error.hint) from error


def _rope_scaling(file: GGUF, arch: str) -> dict[str, Any] | None:
    kind = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": float(file.metadata.get(f"{arch}.rope.scaling.factor", 1.0))}
    original = file.metadata.get(f"{arch}.rope.scaling.original_context_length")
    return scaling if original is None else {**scaling, "original_max_position_embeddings": original}


def _our_name(name: str) -> str | None:
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{suffix}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _INSIDE:
        return f"model.layers.{parts[1]}.{_INSIDE[parts[2]]}.{suffix}"
    return None


def _halves_of_heads(name: str, tensor: Tensor, config: DecoderConfig) -> Tensor:
    """Llama files keep the pairs that are rotated together side by side; here they are the halves of a head."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return tensor
    pairs = tensor.view(-1, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _tokenizer(file: GGUF) -> Tokenizer:
    get = file.metadata.get
    if get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(
            f"the tokenizer '{get('tokenizer.ggml.model')}' is not supported, only byte-level BPE is",
            where=str(file.path),
            hint="import the model from its Hugging Face folder",
        )
    tokens: list[str] = get("tokenizer.ggml.tokens") or []
    merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges") or []]
    pieces = get("tokenizer.ggml.pre", "default")
    vocabulary = {token: at for at, token in enumerate(tokens)}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pieces == "llama-bpe"))
    except Exception as error:
        raise ModelError(f"its tokenizer cannot be used: {error}", where=str(file.path)) from error
    _cut_like(backend, pieces, file.path)
    backend.decoder = decoders.ByteLevel()
    kinds = get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for token, kind in zip(tokens, kinds, strict=False):
        if kind == _CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    settings: dict[str, Any] = {"chat_template": get("tokenizer.chat_template")}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        at = get(f"tokenizer.ggml.{key}_token_id")
        settings[f"{name}_token"] = tokens[at] if isinstance(at, int) and at < len(tokens) else None
    return Tokenizer(backend, {name: value for name, value in settings.items() if value is not None})


def _cut_like(backend: tokenizers.Tokenizer, pieces: str, path: Path) -> None:
    """How text is cut into pieces before merging; files give it by name."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    without_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pieces in ("default", "gpt-2"):
        backend.pre_tokenizer = words
    elif pieces == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif pieces in ("llama-bpe", "qwen2"):
        regex = Regex(_LLAMA3_WORDS if pieces == "llama-bpe" else _QWEN2_WORDS)
        cut = pre_tokenizers.Split(regex, behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, without_words])
        if pieces == "qwen2":
            backend.normalizer = normalizers.NFC()
    else:
        known = ("default", "gpt-2", "llama-bpe", "qwen2", "smollm")
        raise ModelError(f"text is cut like '{pieces}'", where=str(path), hint=did_you_mean(pieces, known))
