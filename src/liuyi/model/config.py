"""What a decoder is made of: one frozen configuration for every family, under Hugging Face's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from liuyi.core.errors import ModelError, did_you_mean

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Family (`model_type` of a Hugging Face config) → its architecture's name."""

ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""RoPE scaling → the fields it must have."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
FULL, SLIDING = "full_attention", "sliding_attention"
QK_NORM = ("qwen3", "qwen3_moe")
EXPERTS = ("mixtral", "qwen3_moe")

_MOST_LAYERS = 1 << 10
"""No file is believed that asks for more: each layer takes time and memory to make, before any of its weights."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and family of a decoder. Sizes are in elements, `rope_theta` is the base wavelength.

    `attention_bias` puts a bias on the query, key and value projections (and, in every family but Qwen2, on the
    output projection), `qk_norm` an RMS norm on each query and key head. `sliding_window` is the number of tokens
    a query sees, itself included; `layer_types` names the layers that use it, all of them when empty.
    With `num_experts`, each token goes through `num_experts_per_tok` of them in every layer but the `dense_layers`;
    an expert's inner size is `moe_intermediate_size`, and `norm_topk_prob` has the weights of those chosen sum to one.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001
    dense_layers: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ModelError(f"the family '{self.family}' is not supported", hint=did_you_mean(self.family, FAMILIES))
        self._check_sizes()
        self._check_experts()
        self._check_windows()
        self._check_rope()

    def _check_sizes(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"must be a positive whole number, not {value!r}", where=name)
        _demand_few(self.num_hidden_layers)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key-value heads",
                where="num_key_value_heads",
                hint="num_attention_heads must be a multiple of num_key_value_heads",
            )
        if self.head_dim % 2:
            raise ModelError(f"must be even for rotary embeddings, not {self.head_dim}", where="head_dim")
        for token in self.eos_token_ids:
            if not isinstance(token, int):
                raise ModelError(f"must be the ids of tokens, not {token!r}", where="eos_token_id")

    def _check_experts(self) -> None:
        if (self.family in EXPERTS) != bool(self.num_experts):
            has = "has" if self.family in EXPERTS else "has no"
            raise ModelError(f"a {self.family} model {has} experts, not {self.num_experts}", where="num_experts")
        if self.num_experts and not (
            0 < self.num_experts_per_tok <= self.num_experts and self.moe_intermediate_size > 0
        ):
            raise ModelError(
                f"{self.num_experts_per_tok} of {self.num_experts} experts of size {self.moe_intermediate_size} "
                "cannot be chosen for a token",
                where="num_experts_per_tok",
            )

    def _check_windows(self) -> None:
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"must be at least 1, not {self.sliding_window}", where="sliding_window")
        if self.layer_types and (
            len(self.layer_types) != self.num_hidden_layers or set(self.layer_types) - {FULL, SLIDING}
        ):
            raise ModelError(
                f"needs one of '{FULL}' and '{SLIDING}' for each of the {self.num_hidden_layers} layers",
                where="layer_types",
            )

    def _check_rope(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ModelError(
                f"RoPE scaling '{self.rope_type}' is not supported",
                where="rope_scaling",
                hint=did_you_mean(self.rope_type, ROPE_TYPES),
            )
        missing = [name for name in ROPE_TYPES[self.rope_type] if name not in (self.rope_scaling or {})]
        if missing:
            raise ModelError(f"'{self.rope_type}' scaling lacks {', '.join(missing)}", where="rope_scaling")
        for name in ROPE_TYPES[self.rope_type]:
            value = (self.rope_scaling or {})[name]
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ModelError(f"'{name}' must be a number above 0, not {value!r}", where="rope_scaling")
        if not 0 < self.rope_theta < math.inf:
            raise ModelError(f"must be a number above 0, not {self.rope_theta}", where="rope_theta")

    @property
    def rope_type(self) -> str:
        """How rotary positions are scaled: a key of `ROPE_TYPES`."""
        scaling = self.rope_scaling or {}
        return str(scaling.get("rope_type", scaling.get("type", "default")))

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest text: `max_position_embeddings`, or more where scaling stretches it."""
        scaling = self.rope_scaling or {}
        original = scaling.get("original_max_position_embeddings") or self.max_position_embeddings
        if self.rope_type == "yarn":
            return max(self.max_position_embeddings, int(scaling["factor"] * original))
        if self.rope_type == "dynamic":
            return int(scaling["factor"] * self.max_position_embeddings)
        return self.max_position_embeddings

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text, as a tuple."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def window(self, layer: int) -> int | None:
        """How many tokens a query of that layer sees, itself included; None for all before it."""
        if self.sliding_window is None or (self.layer_types and self.layer_types[layer] == FULL):
            return None
        return self.sliding_window

    def has_experts(self, layer: int) -> bool:
        """Whether that layer has experts in place of an MLP."""
        return self.num_experts > 0 and layer not in self.dense_layers

    @property
    def num_parameters(self) -> int:
        """Number of trained values; tied embeddings count once."""
        return self._parameters(self.num_experts)

    @property
    def num_parameters_active(self) -> int:
        """Those that a token goes through: of the experts, only as many as it has."""
        return self._parameters(min(self.num_experts, self.num_experts_per_tok))

    def _parameters(self, experts: int) -> int:
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        block = 2 * self.hidden_size * (query + key)
        block += 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        if self.attention_bias:
            block += query + 2 * key + (self.hidden_size if self.output_bias else 0)
        sparse = sum(map(self.has_experts, range(self.num_hidden_layers)))
        inner = (self.num_hidden_layers - sparse) * self.intermediate_size
        inner += sparse * experts * self.moe_intermediate_size
        routers = sparse * self.num_experts * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        layers = self.num_hidden_layers * block + 3 * self.hidden_size * inner + routers
        return embeddings + layers + self.hidden_size

    @property
    def num_parameters_read(self) -> int:
        """Those that each token reads: all but an embedding that is not the head as well, for it is only looked up."""
        looked_up_only = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self.num_parameters_active - looked_up_only

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.attention_bias and self.family != "qwen2"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a Hugging Face `config.json`, of transformers 4 or 5.

        Raises ModelError for an architecture, activation or scaling that is not supported, naming the field.
        """
        family = config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            architectures = config.get("architectures")
            named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else repr(family)
            raise ModelError(f"the architecture {named} is not supported", hint=f"supported: {', '.join(FAMILIES)}")
        for field, expected in (("hidden_act", "silu"), ("mlp_bias", False)):
            if config.get(field, expected) != expected:
                raise ModelError(f"{config[field]!r} is not supported, only {expected!r}", where=field)
        try:
            _demand_few(config["num_hidden_layers"])
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            rope = _rope(config)
            theta = rope.pop("rope_theta", config.get("rope_theta", 10_000.0))
            if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
                raise ModelError("partial rotary embeddings are not supported", where="partial_rotary_factor")
            plain = rope.get("rope_type", rope.get("type", "default")) == "default"
            return cls(
                family=family,
                vocab_size=config["vocab_size"],
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                max_position_embeddings=config.get("max_position_embeddings", 2048),
                rope_theta=float(theta),
                rope_scaling=None if plain else rope,
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                attention_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
                qk_norm=family in QK_NORM,
                sliding_window=_window(family, config),
                layer_types=_layer_types(family, config),
                **_experts(family, config),
                bos_token_id=config.get("bos_token_id"),
                eos_token_id=_ids(config.get("eos_token_id")),
                pad_token_id=config.get("pad_token_id"),
            )
        except KeyError as error:
            raise ModelError(f"the field '{error.args[0]}' is missing") from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelError(f"a field has a value that it cannot have ({error})") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that Hugging Face's libraries read, without the dtype of the weights."""
        values = asdict(self)
        family, qk_norm = values.pop("family"), values.pop("qk_norm")
        if qk_norm != (family in QK_NORM) or (
            family in ("qwen2", "mistral", "mixtral") and self.attention_bias != (family == "qwen2")
        ):
            raise ModelError(f"no {family} model of Hugging Face has this mix of biases and norms")
        scaling, theta = values.pop("rope_scaling"), values.pop("rope_theta")
        values["rope_parameters"] = {**(scaling or {"rope_type": "default"}), "rope_theta": theta}
        layer_types, window = values.pop("layer_types"), values.pop("sliding_window")
        if family != "llama":
            values["sliding_window"] = window
        elif window is not None:
            raise ModelError("Hugging Face's Llama has no sliding window", where="sliding_window", hint="use 'mistral'")
        if family.startswith("qwen"):
            values["use_sliding_window"] = window is not None
            values["layer_types"] = list(layer_types) or [FULL if window is None else SLIDING] * self.num_hidden_layers
        elif FULL in layer_types and window is not None:
            raise ModelError(f"every layer of a {family} model has the same window", where="layer_types")
        if family in ("qwen2", "mistral", "mixtral"):
            del values["attention_bias"]
        experts = {name: values.pop(name) for name in _EXPERT_FIELDS}
        if family == "qwen3_moe":
            del values["layer_types"]
            values |= {**experts, "mlp_only_layers": list(experts["dense_layers"]), "decoder_sparse_step": 1}
            del values["dense_layers"]
        elif family == "mixtral":
            if experts["dense_layers"] or not experts["norm_topk_prob"]:
                raise ModelError("every layer of a Mixtral has experts, whose weights sum to one", where="dense_layers")
            values |= {
                "intermediate_size": experts["moe_intermediate_size"],
                "num_local_experts": experts["num_experts"],
                "num_experts_per_tok": experts["num_experts_per_tok"],
                "router_aux_loss_coef": experts["router_aux_loss_coef"],
            }
        eos = self.eos_token_id
        values["eos_token_id"] = list(eos) if isinstance(eos, tuple) else eos
        return {"architectures": [FAMILIES[family]], "model_type": family, "hidden_act": "silu", **values}


_EXPERT_FIELDS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "dense_layers",
)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of rotary embeddings; transformers 5 keeps the base wavelength and the scaling in one field.

    Raises ModelError where an older field beside it says otherwise: one of them would be without effect.
    """
    parameters, scaling = dict(config.get("rope_parameters") or {}), dict(config.get("rope_scaling") or {})
    older = {"rope_type" if name == "type" else name: value for name, value in scaling.items()}
    if parameters and not older.items() <= parameters.items():
        raise ModelError(
            "it says otherwise than rope_parameters", where="rope_scaling", hint="say all of it in rope_parameters"
        )
    return parameters or scaling


def _demand_few(layers: int) -> None:
    if layers > _MOST_LAYERS:
        raise ModelError(f"is {layers}, more than {_MOST_LAYERS}", where="num_hidden_layers")


def _experts(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a mixture of experts; none for a dense family."""
    if family == "mixtral":
        return {
            "num_experts": config.get("num_local_experts", 8),
            "num_experts_per_tok": config.get("num_experts_per_tok", 2),
            "moe_intermediate_size": config["intermediate_size"],
            "router_aux_loss_coef": config.get("router_aux_loss_coef", 0.001),
        }
    if family != "qwen3_moe":
        return {}
    every, dense = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
    dense |= {layer for layer in range(config["num_hidden_layers"]) if (layer + 1) % every}
    return {
        "num_experts": config.get("num_experts", config.get("num_local_experts", 128)),
        "num_experts_per_tok": config.get("num_experts_per_tok", 8),
        "moe_intermediate_size": config.get("moe_intermediate_size", 768),
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "router_aux_loss_coef": config.get("router_aux_loss_coef", 0.001),
        "dense_layers": tuple(sorted(dense)),
    }


def _ids(value: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _window(family: str, config: Mapping[str, Any]) -> int | None:
    if family == "llama" or (family.startswith("qwen") and not config.get("use_sliding_window", False)):
        return None
    default = 4096 if family == "mistral" and "sliding_window" not in config else None
    window = config.get("sliding_window", default)
    return None if window is None else int(window)


def _layer_types(family: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    if family not in ("qwen2", "qwen3") or _window(family, config) is None:
        return ()
    layers = config["num_hidden_layers"]
    first = config.get("max_window_layers", 28)
    return tuple(config.get("layer_types") or [SLIDING if layer >= first else FULL for layer in range(layers)])
