"""Names of tensors in GGUF files and in the decoder, and how llama.cpp orders the rows of queries and keys."""

from __future__ import annotations

from torch import Tensor

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
_FROM_OUTSIDE = {ours: theirs for theirs, ours in _OUTSIDE.items()}
_FROM_INSIDE = {ours: theirs for theirs, ours in _INSIDE.items()}


def decoder_name(name: str) -> str | None:
    """The decoder's name of a tensor in a file, None if the decoder has no such tensor."""
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{suffix}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _INSIDE:
        return f"model.layers.{parts[1]}.{_INSIDE[parts[2]]}.{suffix}"
    return None


def gguf_name(name: str) -> str:
    """The name in a file of one of the decoder's tensors."""
    stem, _, suffix = name.rpartition(".")
    if stem in _FROM_OUTSIDE:
        return f"{_FROM_OUTSIDE[stem]}.{suffix}"
    layer, _, inner = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_FROM_INSIDE[inner]}.{suffix}"


def halves_of_heads(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Llama files keep the rows that are rotated together side by side; in the decoder they are a head's halves.

    `name` is the decoder's; tensors other than queries and keys stay as they are.
    """
    if not _is_rotated(name):
        return tensor
    pairs = tensor.view(-1, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def pairs_of_rows(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """The other way round: a tensor of the decoder as Llama files keep it."""
    if not _is_rotated(name):
        return tensor
    halves = tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _is_rotated(name: str) -> bool:
    return ".q_proj." in name or ".k_proj." in name
