"""Models of other programs into the store, and what is in it, or anywhere, as a source for `export.py`.

artifact = import_model(home, Path("SmolLM2-135M-Instruct"), licences=["apache-2.0"])
export_hf(source_of(home, artifact.digest), Path("my-model"))
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from liuyi.core.artifact import Artifact, Kind
from liuyi.core.disk import full_disk_is_told
from liuyi.core.errors import ArtifactError, ModelError
from liuyi.core.home import Home
from liuyi.core.refs import resolve_artifact
from liuyi.model.adapter import CONFIG as ADAPTER_CONFIG
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import (
    INDEX,
    is_superfluous,
    load_config,
    name_here,
    save_model,
    weight_files,
    without_weights,
)
from liuyi.model.config import DecoderConfig
from liuyi.model.export import Source
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_import import load_gguf
from liuyi.model.load import GGUF_SUFFIX, is_gguf, name_of
from liuyi.model.tokenizer import Tokenizer

_TAKEN = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)


def import_model(home: Home, source: Path, *, licences: Collection[str] = ()) -> Artifact:
    """Take a model into the store as a checkpoint, or a PEFT folder as an adapter, and pin it.

    A model is a folder in Hugging Face's layout, of which only files that a model needs are taken, or a GGUF file,
    whose weights are widened to float32. Nothing is unpickled. Licences that are not given are read from the model
    card or the file's metadata. Raises ModelError, naming file and tensor, if the source cannot be loaded here.
    """
    is_adapter = (source / ADAPTER_CONFIG).is_file()
    kind: Kind = "adapter" if is_adapter else "checkpoint"
    take = _take_adapter if is_adapter else _take_gguf if source.is_file() else _take_folder
    staging = home.store.stage(kind)
    try:
        with full_disk_is_told("importing a model", staging.path):
            stated, staging.metrics["parameters"] = take(source, staging.path)
        staging.licences |= set(licences) or stated
        artifact = home.store.publish(staging, step="import", output=kind, params={"source": name_of(source)})
    finally:
        home.store.discard(staging)
    home.ledger.pin(artifact.digest, f"imported from {name_of(source)}")
    home.ledger.record_artifact(artifact.manifest)
    return artifact


def _take_adapter(folder: Path, target: Path) -> tuple[set[str], int]:
    """Write an adapter's folder anew; gives the licences that its card states, and how many values it has."""
    adapter = Adapter.load(folder)
    adapter.save(target)
    return _card_licences(folder), adapter.num_parameters


def _take_folder(folder: Path, target: Path) -> tuple[set[str], int]:
    """Copy what a model needs; gives the licences that the model card states, and how many values it has."""
    config, weights = load_config(folder), weight_files(folder)
    _check_weights(config, weights)
    Tokenizer.load(folder)
    for name in [*(name for name in _TAKEN if (folder / name).is_file()), *(path.name for path in weights)]:
        shutil.copyfile(folder / name, target / name)
    return _card_licences(folder), config.num_parameters


def _take_gguf(path: Path, target: Path) -> tuple[set[str], int]:
    """Write a GGUF file's model as a folder; gives the licence that its metadata state, and how many values it has."""
    model, tokenizer = load_gguf(path)
    save_model(target, model, tokenizer)
    licence = GGUF(path).metadata.get("general.license")
    return {str(licence)} if licence else set(), model.config.num_parameters


def source_of(home: Home, ref: str) -> Source:
    """What `ref` names, to be exported: a model or an adapter at a path, or one in the home's store.

    Raises LiuyiError, saying what would be right, if it names neither.
    """
    path = Path(ref)
    is_file = path.suffix == GGUF_SUFFIX or (path.is_file() and is_gguf(path))
    if is_file or any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        return Source(path.resolve(), name=name_of(path))
    if path.is_dir():
        raise ArtifactError("the folder holds no model", where=str(path), hint="a model folder has a config.json")
    artifact = home.store.open(resolve_artifact(home, ref))
    if artifact.kind not in ("checkpoint", "adapter"):
        raise ArtifactError(f"{artifact.kind} {artifact.digest[:12]} is not a model", hint="give a checkpoint")
    came_from = next((f"checkpoint {each.digest[:12]}" for each in artifact.manifest.inputs), "what it came from")
    name = f"{artifact.manifest.step}-{artifact.digest[:12]}"
    return Source(artifact.path, name=name, licences=artifact.manifest.licences, came_from=came_from)


def _check_weights(config: DecoderConfig, paths: list[Path]) -> None:
    """Compare names and shapes of all tensors with the configuration, without reading the tensors themselves."""
    folder = paths[0].parent
    model = without_weights(config, folder / "config.json")
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    found[name_here(name, config)] = file.get_slice(name).get_shape()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot be read: {error}", where=str(path)) from error
    for name in found:
        if name not in expected and not is_superfluous(name, config):
            raise ModelError(f"holds the tensor '{name}', which a {config.family} model has not", where=str(folder))
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"the tensor '{name}' is missing", where=str(folder))
        if found[name] != shape:
            raise ModelError(
                f"the tensor '{name}' has the shape {found[name]}; config.json asks for {shape}",
                where=str(folder),
            )


def _card_licences(folder: Path) -> set[str]:
    """The licences that the front matter of a model card names."""
    path = folder / "README.md"
    if not path.is_file():
        return set()
    opening, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("---\n")
    front, closing, _ = rest.partition("\n---")
    if opening.strip() or not closing:
        return set()
    try:
        said = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise ModelError(
            "the model card's front matter is not YAML", where=str(path), hint="or say the licence: --licence"
        ) from error
    licence = said.get("license") if isinstance(said, dict) else None
    return {str(name) for name in (licence if isinstance(licence, list) else [licence]) if name}
