"""Model folders of other programs, into the store and out of it.

artifact = import_model(home, Path("SmolLM2-135M-Instruct"), licences=["apache-2.0"])
export_model(home.store, artifact.digest, Path("my-model"))
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open

from liuyi.core.artifact import Artifact
from liuyi.core.disk import full_disk_is_told, sync_tree
from liuyi.core.errors import ArtifactError, ModelError
from liuyi.core.home import Home
from liuyi.core.store import Store
from liuyi.model.checkpoint import INDEX, load_config, save_model, weight_files
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_import import load_gguf
from liuyi.model.tokenizer import Tokenizer

OURS = ("liuyi.json", "training.jsonl", "effect.json")
QUANTIZATION = "quantization.json"
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
    """Take a model folder in Hugging Face's layout, or a GGUF file, into the store as a checkpoint, and pin it.

    Of a folder only files that a model needs are taken, and nothing is unpickled; a GGUF file's weights are widened to
    float32. Licences that are not given are read from the model card or the file's metadata. Raises ModelError, naming
    file and tensor, if the source is not a model that can be loaded here.
    """
    staging = home.store.stage("checkpoint")
    try:
        with full_disk_is_told("importing a model", staging.path):
            stated = (_take_gguf if source.is_file() else _take_folder)(source, staging.path)
        staging.licences |= set(licences) or stated
        staging.metrics["parameters"] = load_config(staging.path).num_parameters
        artifact = home.store.publish(staging, step="import", output="checkpoint", params={"source": source.name})
    finally:
        home.store.discard(staging)
    home.ledger.pin(artifact.digest, f"imported from {source.name}")
    home.ledger.record_artifact(artifact.manifest)
    return artifact


def _take_folder(folder: Path, target: Path) -> set[str]:
    """Copy what a model needs; gives the licences that the model card states."""
    config, weights = load_config(folder), weight_files(folder)
    _check_weights(config, weights)
    Tokenizer.load(folder)
    for name in [*(name for name in _TAKEN if (folder / name).is_file()), *(path.name for path in weights)]:
        shutil.copyfile(folder / name, target / name)
    return _card_licences(folder)


def _take_gguf(path: Path, target: Path) -> set[str]:
    """Write a GGUF file's model as a folder; gives the licence that its metadata state."""
    model, tokenizer = load_gguf(path)
    save_model(target, model, tokenizer)
    licence = GGUF(path).metadata.get("general.license")
    return {str(licence)} if licence else set()


def export_model(store: Store, ref: str, folder: Path) -> list[str]:
    """Write a checkpoint as a folder that `transformers` reads; gives the names of its files.

    The folder is there whole or not at all. Raises ArtifactError if the artifact is not a checkpoint, is quantised in
    a way that only Liuyi reads, or if the folder exists already.
    """
    artifact = store.open(ref)
    if artifact.kind != "checkpoint":
        raise ArtifactError(f"{artifact.kind} {artifact.digest[:12]} is not a model", hint="give a checkpoint")
    names = [entry.path for entry in artifact.manifest.files]
    if QUANTIZATION in names:
        source = next((f"checkpoint {each.digest[:12]}" for each in artifact.manifest.inputs), "what it came from")
        raise ArtifactError(
            f"checkpoint {artifact.digest[:12]} is quantised in a form that other programs do not read",
            hint=f"export {source}",
        )
    if folder.exists():
        raise ArtifactError("this exists already", where=str(folder), hint="name a new folder")
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    names = [name for name in names if name not in OURS]
    try:
        with full_disk_is_told("exporting a model", folder.parent):
            for name in names:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.file(name), part / name)
            sync_tree(part)
            part.rename(folder)
    except OSError as error:
        raise ArtifactError(f"the folder cannot be written: {error.strerror}", where=str(folder)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return names


def _check_weights(config: DecoderConfig, paths: list[Path]) -> None:
    """Compare names and shapes of all tensors with the configuration, without reading the tensors themselves."""
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in Decoder(config).state_dict().items()}
    found: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot be read: {error}", where=str(path)) from error
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"the tensor '{name}' is missing", where=str(paths[0].parent))
        if found[name] != shape:
            raise ModelError(
                f"the tensor '{name}' has the shape {found[name]}; config.json asks for {shape}",
                where=str(paths[0].parent),
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
    except yaml.YAMLError as error:
        raise ModelError(
            "the model card's front matter is not YAML", where=str(path), hint="or say the licence: --licence"
        ) from error
    licence = said.get("license") if isinstance(said, dict) else None
    return {str(name) for name in (licence if isinstance(licence, list) else [licence]) if name}
