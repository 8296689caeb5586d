"""A model and its tokenizer from wherever they are: a folder in Hugging Face's layout, or a GGUF file.

model, tokenizer = load(path)
tokenizer = load_tokenizer(path)          # without torch, for whoever needs no weights
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.errors import ModelError
from liuyi.model.files import read_json
from liuyi.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from liuyi.model.decoder import Decoder

GGUF_SUFFIX = ".gguf"
GGUF_MAGIC = b"GGUF"


def load(path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer at `path`; weights are converted to `dtype`, kept as they are stored when None.

    Raises ModelError, naming the file and what is wrong in it.
    """
    import torch

    if is_gguf(path):
        from liuyi.model.gguf_import import load_gguf

        model, tokenizer = load_gguf(path, dtype or torch.float32)
        return model.to(device), tokenizer
    from liuyi.model.checkpoint import load_model

    return load_model(path, dtype or stored_dtype(path), device), Tokenizer.load(path)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at `path`. Raises ModelError as `load` does."""
    if is_gguf(path):
        from liuyi.model.gguf import GGUF
        from liuyi.model.gguf_vocabulary import read_vocabulary

        return read_vocabulary(GGUF(path))
    return Tokenizer.load(path)


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format that a model folder says its weights have; float32 for what is not bfloat16."""
    import torch

    values = read_json(folder / "config.json", hint="a model folder has a config.json")
    return torch.bfloat16 if values.get("dtype", values.get("torch_dtype")) == "bfloat16" else torch.float32


def name_of(path: Path) -> str:
    """What people call the model at `path`: a link by its own name, a folder of the hub's cache not by its commit."""
    path = path.resolve() if path.name == ".." else path.absolute()
    if path.parent.name == "snapshots" and (cached := path.parent.parent.name).startswith("models--"):
        return cached.rpartition("--")[2]
    return path.stem if path.suffix == GGUF_SUFFIX else path.name


def is_gguf(path: Path) -> bool:
    """Whether `path` is a GGUF file, by its name or, as Ollama names its own by digests, by how it begins.

    Raises ModelError if there is nothing at `path`.
    """
    if not path.exists():
        raise ModelError("there is no such file or folder", where=str(path))
    if not path.is_file():
        return False
    if path.suffix == GGUF_SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
