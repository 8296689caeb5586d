"""LoRA adapters (arXiv 2106.09685), in PEFT's folders: what is written here `peft` reads, and the other way round.

    adapter = Adapter.load(Path("my-adapter"))          # adapter_config.json and adapter_model.safetensors
    adapter.check(model.config)                          # or a ModelError that names the module that does not fit

An adapter adds scale·B·A to some of the decoder's projections; DoRA's (arXiv 2402.09353) then gives every row of the
sum a length of its own. Tensors are read from safetensors only; what would change the outputs in any other way (trained
biases, embeddings, …) is refused by name rather than left out. `merge.py` puts adapters into the weights themselves.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liuyi.core.digest import canonical_json
from liuyi.core.errors import ModelError, did_you_mean
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, Linear
from liuyi.model.files import read_json, read_tensors, write_json, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = (*ATTENTION, *MLP)
"""What adapters may change in every layer: the decoder's linear layers."""

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<side>[AB])(\.default)?\.weight|(?P<lengths>magnitude_vector))")
_NESTED = re.compile(r"\)[*+{]|[*+{].*[*+{].*[*+{].*[*+{]")
_LONGEST_PATTERN = 200
_REFUSED = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias in the adapter",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "fully trained modules",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters of bare parameters",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
"""Settings of PEFT under which an adapter is more than scale·B·A, and what to call them."""

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin training that take something out of the base model's weights first."""


@dataclass(frozen=True)
class LowRank:
    """What is added to one projection: scale · up · down, in float32 on the CPU."""

    down: Tensor
    """PEFT's `lora_A`, [rank, in_features]."""
    up: Tensor
    """PEFT's `lora_B`, [out_features, rank]."""
    scale: float
    """alpha / rank; with rank-stabilised LoRA (arXiv 2312.03732) alpha / √rank."""
    lengths: Tensor | None = None
    """DoRA's length of every row of the sum, PEFT's `lora_magnitude_vector`, [out_features]."""

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.down.shape[0]

    def product(self) -> Tensor:
        """The matrix that is added, [out_features, in_features] float32."""
        return self.up @ self.down * self.scale

    def merged(self, weight: Tensor) -> Tensor:
        """The weight [out_features, in_features] that the projection has with the adapter, float64."""
        total: Tensor = weight.double() + self.product().to(weight.device).double()
        if self.lengths is None:
            return total
        norms = torch.linalg.vector_norm(total, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        stretch: Tensor = self.lengths.to(weight.device).double() / norms
        return total * stretch[:, None]


@dataclass(frozen=True)
class Adapter:
    """Low-rank additions by the decoder's module names, such as `model.layers.0.self_attn.q_proj`."""

    modules: Mapping[str, LowRank]
    rslora: bool = False
    """Whether PEFT should take alpha / √rank for the scale; kept so that a folder comes back as it was."""
    base: str = ""
    """The model that the adapter was trained on, as PEFT notes it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other notes in PEFT's configuration that do not change the outputs: `task_type`, `lora_dropout`."""

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read a PEFT folder.

        Raises ModelError naming the file and the tensor or setting if it is damaged or asks for what is not supported.
        """
        values = read_json(folder / CONFIG, hint="a PEFT adapter has an adapter_config.json")
        _check_settings(values, folder / CONFIG)
        path = folder / WEIGHTS
        if not path.exists():
            raise ModelError(f"the folder has no {WEIGHTS}", where=str(folder), hint="pickled adapters are not read")
        sides: dict[str, dict[str, Tensor]] = {}
        for name, tensor in read_tensors(path).items():
            match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
            if match is None or match["module"].rpartition(".")[2] not in PROJECTIONS:
                raise ModelError(
                    f"the tensor '{name}' is not supported",
                    where=str(path),
                    hint=f"adapters of {', '.join(PROJECTIONS)} are",
                )
            if match["lengths"] and not values.get("use_dora"):
                raise ModelError(f"the tensor '{name}' is not supported without 'use_dora'", where=str(path))
            if tensor.dim() != (1 if match["lengths"] else 2) or not tensor.is_floating_point():
                called = "vector" if match["lengths"] else "matrix"
                raise ModelError(f"the tensor '{name}' is not a {called} of real numbers", where=str(path))
            sides.setdefault(match["module"], {})[match["side"] or match["lengths"]] = tensor.float()
        if not sides:
            raise ModelError("holds no tensors", where=str(path))
        modules = {module: _low_rank(module, pair, values, path) for module, pair in sorted(sides.items())}
        settings = {name: values[name] for name in ("task_type", "lora_dropout") if values.get(name)}
        return cls(modules, bool(values.get("use_rslora")), str(values.get("base_model_name_or_path") or ""), settings)

    def save(self, folder: Path) -> None:
        """Write a PEFT folder, the same bytes for the same adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, self.to_peft())
        tensors: dict[str, Tensor] = {}
        for module, change in self.modules.items():
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = change.down
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = change.up
            if change.lengths is not None:
                tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = change.lengths
        write_tensors(folder / WEIGHTS, tensors)

    def to_peft(self) -> dict[str, Any]:
        """The `adapter_config.json` that PEFT reads."""
        alphas = {name: self._alpha(change) for name, change in self.modules.items()}
        rank = Counter(change.rank for change in self.modules.values()).most_common(1)[0][0]
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        return {
            "task_type": "CAUSAL_LM",
            "lora_dropout": 0.0,
            **self.settings,
            "peft_type": "LORA",
            "base_model_name_or_path": self.base or None,
            "inference_mode": True,
            "bias": "none",
            "r": rank,
            "lora_alpha": alpha,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "rank_pattern": {name: each.rank for name, each in self.modules.items() if each.rank != rank},
            "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
            "target_modules": self._targets(),
        }

    def check(self, config: DecoderConfig) -> None:
        """Raises ModelError, naming the module, unless every module is one of the model's and of its shape."""
        shapes = projection_shapes(config)
        for name, change in self.modules.items():
            if name not in shapes:
                raise ModelError(
                    f"the adapter changes '{name}', which the model has not", hint=did_you_mean(name, shapes)
                )
            found = (change.up.shape[0], change.down.shape[1])
            if found != shapes[name]:
                raise ModelError(f"the adapter is for a '{name}' of {list(found)}; the model's is {list(shapes[name])}")

    @property
    def dora(self) -> bool:
        """Whether rows have lengths of their own, so that it is no sum with the weights."""
        return any(change.lengths is not None for change in self.modules.values())

    @property
    def num_parameters(self) -> int:
        """Number of its values."""
        parts = [(each.down, each.up, each.lengths) for each in self.modules.values()]
        return sum(part.numel() for each in parts for part in each if part is not None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides about the outputs: names, scales and tensors."""
        total = hashlib.sha256()
        for name, change in sorted(self.modules.items()):
            head = [name, list(change.down.shape), list(change.up.shape), change.scale]
            total.update(canonical_json(head).encode())
            total.update(change.down.contiguous().numpy().tobytes())
            total.update(change.up.contiguous().numpy().tobytes())
            if change.lengths is not None:
                total.update(change.lengths.contiguous().numpy().tobytes())
        return total.hexdigest()

    def _alpha(self, change: LowRank) -> float:
        alpha = change.scale * (math.sqrt(change.rank) if self.rslora else change.rank)
        # What was written as 16 comes back as 16, not as 16.000000000000004.
        return float(f"{alpha:.12g}")

    def _targets(self) -> list[str]:
        """The projections' short names where every layer has the same ones, otherwise the modules' full names."""
        layers: dict[str, set[str]] = {}
        for name in self.modules:
            stem, _, short = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")
            layers.setdefault(stem, set()).add(short)
        numbers = sorted(int(stem.rpartition(".")[2]) for stem in layers)
        if numbers == list(range(len(numbers))) and len({frozenset(shorts) for shorts in layers.values()}) == 1:
            return sorted(next(iter(layers.values())))
        return sorted(self.modules)


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Every projection that an adapter may change: its module's name and (out_features, in_features)."""
    with torch.device("meta"):
        model = Decoder(config)
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.rpartition(".")[2] in PROJECTIONS
    }


def _check_settings(values: Mapping[str, Any], path: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise ModelError(f"the adapter type {values.get('peft_type')!r} is not supported, only 'LORA'", where=str(path))
    for name, called in _REFUSED.items():
        if values.get(name):
            raise ModelError(f"{called} ('{name}') is not supported", where=str(path))
    if values.get("bias", "none") != "none":
        raise ModelError("trained biases ('bias') are not supported", where=str(path))
    begun = values.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(_CHANGE_THE_BASE):
        raise ModelError(
            f"the adapter belongs to weights that '{begun}' has changed",
            where=str(path),
            hint="save it with PEFT's path_initial_model_for_weight_conversion",
        )


def _low_rank(module: str, sides: Mapping[str, Tensor], values: Mapping[str, Any], path: Path) -> LowRank:
    for side in ("A", "B", *(("magnitude_vector",) if values.get("use_dora") else ())):
        if side not in sides:
            raise ModelError(f"'{module}' has no lora_{side}", where=str(path))
    down, up, lengths = sides["A"], sides["B"], sides.get("magnitude_vector")
    rank = _pattern(values, "rank_pattern", module, values.get("r"), path)
    alpha = _pattern(values, "alpha_pattern", module, values.get("lora_alpha"), path)
    if not down.shape[0] == up.shape[1] == rank or rank < 1:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise ModelError(f"'{module}' has the shapes {shapes}, not those of rank {rank}", where=str(path))
    if lengths is not None and len(lengths) != len(up):
        raise ModelError(f"'{module}' has {len(lengths)} lengths of {len(up)} rows", where=str(path))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise ModelError(f"has the lora_alpha {alpha!r} for '{module}'", where=str(path.with_name(CONFIG)))
    return LowRank(down, up, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank), lengths)


def _pattern(values: Mapping[str, Any], name: str, module: str, default: Any, path: Path) -> Any:
    """A setting that may differ by module: PEFT's keys are regular expressions for the end of the module's name."""
    patterns, where = values.get(name) or {}, str(path.with_name(CONFIG))
    if not isinstance(patterns, dict):
        raise ModelError(f"'{name}' is not an object", where=where)
    for key, value in patterns.items():
        if len(key) > _LONGEST_PATTERN or _NESTED.search(key):
            raise ModelError(f"'{name}' has the pattern {key!r}, which may take forever to match", where=where)
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise ModelError(f"'{name}' has the pattern {key!r}: {error}", where=where) from error
    return default
