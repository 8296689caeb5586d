"""Model folders in Hugging Face's layout: what is written here `transformers` reads, and the other way round.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

A quantised model has a `quantization.json` besides, and is read here only.

Weights are read from safetensors only, whole or in shards; nothing is ever unpickled. The same model gives the same
bytes. Files are written beside and renamed, so none is ever half there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from liuyi.core.digest import canonical_json
from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.files import read_json, read_tensors, write_json, write_tensors
from liuyi.model.quantize import FORMATS, QUANTIZATION, SUFFIXES, Format, format_in, quantization_of, widen, with_shells
from liuyi.model.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def load_config(folder: Path) -> DecoderConfig:
    """The configuration of a model folder, without reading its weights.

    Raises ModelError if there is none, or if the architecture is not supported.
    """
    path = folder / "config.json"
    values = read_json(path, hint="a model folder has a config.json")
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.exists() else None
    try:
        config = DecoderConfig.from_hf(values)
        if ends is None:
            return config
        path = generation
        # A model tuned for chat often names the end of a turn only here.
        ends = tuple(ends) if isinstance(ends, list) else (ends,)
        return replace(config, eos_token_id=ends[0] if len(ends) == 1 else ends)
    except ModelError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise ModelError(error.message, where=where, hint=error.hint) from error


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Decoder:
    """Read a model folder; the weights are converted to `dtype`, quantised ones (`quantize.py`) are widened to it.

    Raises ModelError naming the tensor and the file if one is missing, not known, or of the wrong shape.
    """
    config = load_config(folder)
    quantized = _quantization(folder / QUANTIZATION)
    model = without_weights(config, folder / "config.json", quantized)
    expected = model.state_dict()
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path).items():
            name = name_here(stored, config)
            if is_superfluous(name, config):
                continue
            if name not in expected:
                raise ModelError(f"holds the tensor '{name}', which a {config.family} model has not", where=str(path))
            if tensor.shape != expected[name].shape:
                raise ModelError(
                    f"the tensor '{name}' has the shape {list(tensor.shape)}; "
                    f"config.json asks for {list(expected[name].shape)}",
                    where=str(path),
                )
            if quantized is None:
                weights[name] = tensor.to(device=device, dtype=dtype)
                continue
            keep = name.endswith(SUFFIXES) or not expected[name].is_floating_point()
            if keep and tensor.dtype != expected[name].dtype:
                raise ModelError(f"the tensor '{name}' is {tensor.dtype}, not {expected[name].dtype}", where=str(path))
            weights[name] = tensor.to(device=device, dtype=None if keep else dtype)
    missing = [name for name in expected if name not in weights]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"the tensor '{missing[0]}'{more} is missing", where=str(folder))
    model.load_state_dict(weights, assign=True)
    model.reset_buffers(device)
    if quantized is not None:
        widen(model, dtype)
        model.requires_grad_(False)
    return model


def without_weights(config: DecoderConfig, where: Path, quantized: Format | None = None) -> Decoder:
    """A decoder whose tensors have names, shapes and dtypes, and no memory yet.

    Raises ModelError, naming the file `where` the configuration stands, for sizes beyond any memory.
    """
    try:
        with torch.device("meta"):
            model = Decoder(config)
            if quantized is not None:
                with_shells(model, quantized)
            return model
    except (RuntimeError, OverflowError) as error:
        raise ModelError(f"no model can be of these sizes: {error}", where=str(where)) from error


def save_model(
    folder: Path, model: Decoder, tokenizer: Tokenizer | Path | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder, `tokenizer` (or the files of a folder that holds one) with it.

    `extra` becomes `liuyi.json`: what this project wants to know of the model, which other libraries ignore.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    write_json(folder / "config.json", {**config.to_hf(), "dtype": DTYPES[model.dtype]})
    if isinstance(tokenizer, Path):
        tokenizer = Tokenizer.load(tokenizer)
    ends = tokenizer.stop_ids if tokenizer is not None else config.eos_token_ids
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": config.pad_token_id,
    }
    write_json(folder / "generation_config.json", {name: ids for name, ids in generation.items() if ids is not None})
    write_tensors(folder / WEIGHTS, {name_there(name, config): value for name, value in model.state_dict().items()})
    quantized = quantization_of(model)
    if quantized is not None:
        write_json(folder / QUANTIZATION, FORMATS[quantized])
    if tokenizer is not None:
        tokenizer.save(folder)
    if extra:
        write_json(folder / "liuyi.json", extra)


def is_superfluous(name: str, config: DecoderConfig) -> bool:
    """Whether a file may hold a tensor of this name that a decoder does without, as some writers have it."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


_MIXTRAL = (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))


def name_here(stored: str, config: DecoderConfig) -> str:
    """A tensor's name in the decoder, for its name in a file: Mixtral has names of its own for experts."""
    if config.family == "mixtral":
        stored = stored.replace(".block_sparse_moe.", ".mlp.")
        for theirs, ours in _MIXTRAL:
            stored = stored.replace(f".{theirs}.", f".{ours}.")
    return stored


def name_there(name: str, config: DecoderConfig) -> str:
    """A tensor's name in a file, for its name in the decoder."""
    if config.family == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
        for theirs, ours in _MIXTRAL:
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _quantization(path: Path) -> Format | None:
    if not path.exists():
        return None
    values = read_json(path)
    fmt = format_in(values)
    if fmt is None and isinstance(values, dict) and values.get("format") in get_args(Format):
        raise ModelError(
            f"the {values['format']} weights are arranged as an earlier version wrote them, which this one cannot read",
            where=str(path),
            hint="quantise the model that they came from again",
        )
    if fmt is None:
        known = " or ".join(canonical_json(known) for known in FORMATS.values())
        raise ModelError(
            f"the quantisation {canonical_json(values)} is not supported",
            where=str(path),
            hint=f"{known} is; quantise the full-precision model again",
        )
    return fmt


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises ModelError if there are none, or if one of them is missing."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        named = read_json(folder / INDEX).get("weight_map")
        if not (isinstance(named, dict) and all(isinstance(name, str) for name in named.values())):
            raise ModelError("'weight_map' does not name a file for each tensor", where=str(folder / INDEX))
        names = sorted(set(named.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).exists():
                raise ModelError(f"the weights '{name}' that the index names are missing", where=str(folder / INDEX))
        return [folder / name for name in names]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{pickled[0]} is a pickle, which can run any code when it is read",
            where=str(folder),
            hint="convert it to safetensors where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    raise ModelError(f"the folder has no {WEIGHTS}", where=str(folder))
