"""Models and adapters written for other programs.

    source = Source(path, name="tuned", licences=("MIT",))
    export_hf(source, Path("tuned"))                        # a folder that transformers reads
    export_gguf_file(source, Path("tuned.gguf"), "Q8_0")    # a file for llama.cpp
    export_ollama(source, Path("tuned"), "Q4_0")            # that file and a Modelfile
    export_peft(source, Path("adapter"))                    # an adapter's folder that PEFT reads

A source is a model folder or a GGUF file, or an adapter's folder; `adapter` is merged into the weights on the way.
What is written is there whole or not at all.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from liuyi.core.disk import full_disk_is_told, sync_tree
from liuyi.core.errors import ArtifactError, ModelError
from liuyi.model.adapter import CONFIG as ADAPTER_CONFIG
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.gguf_export import GGUFReport, export_gguf
from liuyi.model.load import is_gguf, load
from liuyi.model.merge import merge_adapter
from liuyi.model.modelfile import modelfile
from liuyi.model.quantize import QUANTIZATION
from liuyi.model.tokenizer import Tokenizer

OURS = ("liuyi.json", "training.jsonl", "effect.json", "manifest.json")
"""Files of a checkpoint that say nothing to other programs."""


@dataclass(frozen=True)
class Source:
    """What is exported, and what its new form should say of it."""

    path: Path
    name: str = ""
    licences: tuple[str, ...] = ()
    came_from: str = "the one that it came from"
    """What to export instead of a quantised model."""


@dataclass
class Exported:
    """What was written, and what was lost on the way."""

    files: list[str]
    notes: list[str] = field(default_factory=list)
    """For people: errors of number formats and of merging, what the other program does otherwise."""


def export_hf(source: Source, folder: Path, adapter: Path | None = None) -> Exported:
    """Write a model folder in Hugging Face's layout.

    Raises ArtifactError if the folder exists or cannot be written, or if the model is quantised as only Liuyi reads;
    ModelError if it cannot be read.
    """
    _refuse_quantised(source)
    with _whole(folder) as part:
        if adapter is None and not is_gguf(source.path):
            _copy(source.path, part)
            return Exported(_names(part))
        model, tokenizer, notes = _open(source, adapter)
        save_model(part, model, tokenizer)
        return Exported(_names(part), notes)


def export_gguf_file(source: Source, path: Path, form: str, adapter: Path | None = None) -> Exported:
    """Write a GGUF file, in one of `gguf_export.FILE_TYPES`. Raises as `export_hf` and `export_gguf` do."""
    _refuse_quantised(source)
    with _whole(path) as part:
        model, tokenizer, notes = _open(source, adapter)
        notes += _gguf(model, tokenizer, part, form, source)
        return Exported([path.name], notes)


def export_ollama(source: Source, folder: Path, form: str, adapter: Path | None = None) -> Exported:
    """Write a folder for `ollama create NAME -f FOLDER/Modelfile`. Raises as `export_gguf_file` and `modelfile` do."""
    _refuse_quantised(source)
    with _whole(folder) as part:
        part.mkdir()
        model, tokenizer, notes = _open(source, adapter)
        notes += _gguf(model, tokenizer, part / "model.gguf", form, source)
        text, more = modelfile(model.config, tokenizer, "./model.gguf", source.licences)
        (part / "Modelfile").write_text(text, encoding="utf-8")
        return Exported(_names(part), [*notes, *more])


def export_peft(source: Source, folder: Path) -> Exported:
    """Write an adapter's folder as PEFT reads it. Raises ArtifactError as `export_hf` does, or if it is none."""
    if not (source.path / ADAPTER_CONFIG).exists():
        raise ArtifactError("this is not an adapter", where=str(source.path), hint="models go --to hf or gguf")
    with _whole(folder) as part:
        Adapter.load(source.path).save(part)
        return Exported(_names(part))


def _open(source: Source, adapter: Path | None) -> tuple[Decoder, Tokenizer, list[str]]:
    """The model in the dtype it is stored in, the adapter merged into it, and what that cost."""
    model, tokenizer = load(source.path)
    if adapter is None:
        return model, tokenizer, []
    model, error = merge_adapter(model, Adapter.load(adapter))
    return model, tokenizer, [f"merging lost {error.change_error:.2%} of what the adapter changes to rounding"]


def _gguf(model: Decoder, tokenizer: Tokenizer, path: Path, form: str, source: Source) -> list[str]:
    report = export_gguf(model, tokenizer, path, form, name=source.name, licence=", ".join(source.licences))
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.most_common())
    return [f"tensors: {formats}", *_error(report), *report.notes]


def _error(report: GGUFReport) -> list[str]:
    if not report.worst:
        return []
    most = f"at most {report.worst_error:.3%} in {report.worst}"
    return [f"error of the weights by their number format: {report.relative_rms_error:.3%} of their size, {most}"]


def _refuse_quantised(source: Source) -> None:
    if (source.path / ADAPTER_CONFIG).exists():
        raise ArtifactError("this is an adapter", where=str(source.path), hint="--to peft; or --adapter for a model")
    if (source.path / QUANTIZATION).exists():
        raise ArtifactError(
            "the model is quantised in a form that other programs do not read",
            where=str(source.path),
            hint=f"export {source.came_from}",
        )


def _copy(folder: Path, target: Path) -> None:
    """A model folder as it is, without what is ours."""
    if not (folder / "config.json").exists():
        raise ModelError("the folder has no config.json", where=str(folder), hint="a model folder has one")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and str(name) not in OURS:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A place beside `target` that takes its name once all is written and flushed."""
    if target.exists():
        raise ArtifactError("this exists already", where=str(target), hint="give a new name")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with full_disk_is_told("exporting", target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if part.is_dir():
                sync_tree(part)
            part.rename(target)
    except OSError as error:
        raise ArtifactError(f"this cannot be written: {error.strerror}", where=str(target)) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
