"""The decoder: one definition for training, rollouts, evaluation and serving.

    model = Decoder(config)
    init_weights(model, seed=1)
    logits = model.logits(model(tokens))                    # tokens [batch, seq] → [batch, seq, vocab]

A pre-norm transformer with rotary positions, grouped-query attention and SwiGLU: Llama, Mistral, Qwen2 and Qwen3
differ in biases, in norms on queries and keys, and in the attention window; Mixtral and Qwen3-MoE have experts in place
of the MLP. Parameter names are Hugging Face's, and those of Qwen3-MoE for Mixtral too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.model.attention import CausalMask, KVCache, attention, segment_starts
from liuyi.model.config import DecoderConfig
from liuyi.model.fused import add, add_norm, norm_to, rotate, swiglu
from liuyi.model.joined import joined_mlp, joined_products
from liuyi.model.joined_layer import joined_layer
from liuyi.model.moe import SparseMLP, balance_loss
from liuyi.model.products import linear
from liuyi.model.rope import Rope
from liuyi.model.working import in_dtype, rows


class Linear(nn.Linear):
    """y = x·Wᵀ + b, computed in the dtype of x whatever the dtype of the weight."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Weights are loaded or set by `init_weights`; only a bias begins as something, zero."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = in_dtype(self.weight, x.dtype)
        if self.bias is None:
            return linear(x, weight)
        return functional.linear(x, weight, self.bias.to(x.dtype))

    times = forward

    @staticmethod
    def together(layers: Sequence[Linear], x: Tensor) -> tuple[Tensor, ...]:
        """What several layers make of the same x, by one product where that can be."""
        return joined_products(x, layers) or tuple(layer(x) for layer in layers)

    def widened(self) -> Tensor:
        """The matrix itself."""
        return self.weight


def products(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What several layers make of the same x; layers of a kind that can do this `together` are asked to."""
    kind = type(layers[0])
    together = getattr(kind, "together", None)
    if together is None or any(type(layer) is not kind for layer in layers):
        return tuple(layer(x) for layer in layers)
    made: tuple[Tensor, ...] = together(layers, x)
    return made


class Embedding(nn.Module):
    """One row for each token; also the matrix of the logits where it is tied."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return rows(self.weight, tokens)

    def times(self, x: Tensor) -> Tensor:
        """x·Wᵀ in the dtype of x: logits of hidden states."""
        return functional.linear(x, in_dtype(self.weight, x.dtype))

    def widened(self) -> Tensor:
        """The matrix itself."""
        return self.weight


class RMSNorm(nn.Module):
    """Root-mean-square norm, taken in the dtype of x; the result has the dtype asked for."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return norm_to(x, self.weight, self.eps, dtype)

    def of_sum(self, x: Tensor, delta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x + delta in the dtype of x, and its norm."""
        return add_norm(x, delta, self.weight, self.eps, dtype)


class Attention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.window = config.window(layer)
        self.head_dim = config.head_dim
        query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, key, bias=config.attention_bias)
        self.o_proj = Linear(query, config.hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: CausalMask, cache: KVCache | None) -> Tensor:
        batch, seq, _ = x.shape
        projected = products(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (each.view(batch, seq, -1, self.head_dim) for each in projected)
        v = v.transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, x.dtype), self.k_norm(k, x.dtype)
        q, k = rotate(q, *rope).transpose(1, 2), rotate(k, *rope).transpose(1, 2)
        mixed = self.attend(q, k, v, mask, cache)
        return torch.as_tensor(self.o_proj(mixed.transpose(1, 2).reshape(batch, seq, -1)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: CausalMask, cache: KVCache | None) -> Tensor:
        """What each query makes of the keys that it sees, in this row and in the cache."""
        return attention(q, k, v, mask, self.window) if cache is None else cache.attend(self.layer, q, k, v)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        made = joined_mlp(x, self.gate_proj, self.up_proj, self.down_proj)
        if made is not None:
            return made
        gate, up = products(x, self.gate_proj, self.up_proj)
        return torch.as_tensor(self.down_proj(swiglu(gate, up)))


class Block(nn.Module):
    """One layer: attention, then MLP, each on a normed copy of the residual stream it adds to."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: MLP | SparseMLP = (
            SparseMLP(config, MLP, Linear)
            if config.has_experts(layer)
            else MLP(config.hidden_size, config.intermediate_size)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, dtype: torch.dtype, rope: tuple[Tensor, Tensor], mask: CausalMask, cache: KVCache | None
    ) -> Tensor:
        if cache is None and type(self.self_attn) is Attention and type(self.mlp) is MLP:
            norms = self.input_layernorm, self.post_attention_layernorm
            made = joined_layer(x, self.self_attn, self.mlp, norms, dtype, rope, mask)
            if made is not None:
                return made
        mixed = self.self_attn(self.input_layernorm(x, dtype), rope, mask, cache)
        x, normed = self.post_attention_layernorm.of_sum(x, mixed, dtype)
        return add(x, self.mlp(normed))


class Backbone(nn.Module):
    """The parts of the decoder that Hugging Face names `model.…`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model. New weights are not initialised: load them, or call `init_weights`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.rope = Rope(config)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [batch, seq, hidden], for tokens [batch, seq] int64.

        `segments` [batch, seq] numbers the documents packed into each row: attention stays within a segment and
        positions restart with each. `positions` [batch, seq] overrides them. With a `cache`, the tokens follow
        those that it holds, and the cache gives positions and attention. `compute_dtype` is the dtype of the
        matrix products and of the result (the weights' own when None); the residual stream keeps the weights'.
        """
        if cache is not None:
            positions = cache.positions
        elif positions is None:
            positions = segment_positions(segments) if segments is not None else self._arange(tokens)
        x = self.model.embed_tokens(tokens)
        dtype = compute_dtype or x.dtype
        rope = self.rope(positions)
        mask = CausalMask(tokens.shape[0], tokens.shape[1], segments, tokens.device)
        for block in self.model.layers:
            x = block(x, dtype, rope, mask, cache)
        return torch.as_tensor(self.model.norm(x, dtype))

    def balance_loss(self) -> Tensor | None:
        """The loss that keeps experts evenly loaded, of the last forward pass, times its coefficient; None without."""
        layers = [block.mlp for block in self.model.layers]
        routings = [mlp.routing for mlp in layers if isinstance(mlp, SparseMLP) and mlp.routing is not None]
        return self.config.router_aux_loss_coef * balance_loss(routings) if routings else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, [..., vocab], in the dtype of hidden [..., hidden]."""
        return torch.as_tensor(self._head.times(hidden))

    @property
    def head_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits, [vocab, hidden]: what `linear_cross_entropy` takes."""
        return torch.as_tensor(self._head.widened())

    @property
    def _head(self) -> Linear | Embedding:
        return self.model.embed_tokens if self.lm_head is None else self.lm_head

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    def reset_buffers(self, device: str | torch.device) -> None:
        """Compute what is not stored with the weights, for a model that was made without storage."""
        self.rope = Rope(self.config).to(device)

    @staticmethod
    def _arange(tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]


def segment_positions(segments: Tensor) -> Tensor:
    """Positions that restart with each segment, [batch, seq], for segment numbers [batch, seq]."""
    return torch.arange(segments.shape[1], device=segments.device) - segment_starts(segments)


def init_weights(model: Decoder, seed: int, std: float = 0.02) -> None:
    """Fresh weights, a function of the seed: normal with `std`, and smaller by √(2·layers) where a layer writes to
    the residual stream (GPT-2), so that its variance does not grow with depth. Norms are one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    writes = std / (2 * model.config.num_hidden_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                fresh = torch.empty(parameter.shape).normal_(0.0, writes if into_stream else std, generator=generator)
                parameter.copy_(fresh)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
