"""Writes GGUF files, version 3: metadata, then tensors one after the other, so that no more than one is in memory.

    write_gguf(path, {"general.architecture": "llama", ...}, [OutTensor("token_embd.weight", (v, d), form, data)])

The file is written beside and renamed, so that it is there whole or not at all; the same content gives the same bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from liuyi.model.gguf_formats import Bytes, Format

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write: its dimensions as in PyTorch, its format, and its bytes when they are asked for."""

    name: str
    shape: tuple[int, ...]
    form: Format
    data: Callable[[], Bytes]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[OutTensor]) -> None:
    """Write a file. Metadata are texts, truth values, numbers and lists of texts, integers or floats.

    Raises OSError if it cannot be written, and what `data` of a tensor raises.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(metadata, tensors))
            _pad(file)
            for tensor in tensors:
                file.write(tensor.data().data)
                _pad(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _header(metadata: Mapping[str, Any], tensors: Sequence[OutTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [_text(name) + _value(value) for name, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        dimensions, size = tensor.shape[::-1], 1
        for length in dimensions:
            size *= length
        form = f"<I{len(dimensions)}QIQ"
        parts.append(_text(tensor.name) + struct.pack(form, len(dimensions), *dimensions, tensor.form.number, offset))
        offset += -(-tensor.form.bytes_for(size) // _ALIGNMENT) * _ALIGNMENT
    return b"".join(parts)


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _kind(value[0]) if value else _STRING
        # Token types are signed in llama.cpp, single numbers are not.
        kind = _INT32 if kind == _UINT32 else kind
        items = b"".join(_plain(kind, item) for item in value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    return struct.pack("<I", _kind(value)) + _plain(_kind(value), value)


def _kind(value: Any) -> int:
    for kind, of in ((bool, _BOOL), (int, _UINT32), (float, _FLOAT32), (str, _STRING)):
        if isinstance(value, kind):
            return of
    raise TypeError(f"a GGUF file holds no {type(value).__name__}")


def _plain(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({_BOOL: "<?", _UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
