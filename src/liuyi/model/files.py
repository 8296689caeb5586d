"""Files of a model folder: written whole or not at all, the same bytes for the same content, errors that name them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from liuyi.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if there is no such file, or no object in it."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which JSON may hold, could not be written again
            json.dumps(values, ensure_ascii=False).encode()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError("there is no such file", where=str(path), hint=hint) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise ModelError("is not a JSON object", where=str(path))
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON, keys in order."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside and rename it, so that it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file. Raises ModelError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, in order of their names."""
    from safetensors.torch import save

    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_bytes(path, save(ordered, metadata={"format": "pt"}))
