"""GGUF files, the format of llama.cpp: metadata and tensors, read without trusting a single length in them.

    file = GGUF(path)
    file.metadata["general.architecture"], file.tensor("token_embd.weight")

Layouts as in the format's specification (ggml, `docs/gguf.md`); F32, F16, BF16, Q8_0, Q4_0 and Q4_1 tensors are
widened to float32.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liuyi.core.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 1 << 24

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUF:
    """An open GGUF file; tensors are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError if the file is not GGUF, of a version other than 2 or 3, or damaged."""
        self.path = path
        if path.stat().st_size < 24:
            raise self._error("is too short for a GGUF file")
        with path.open("rb") as file:
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._at = 0
        if bytes(self._take(4)) != b"GGUF":
            raise self._error("is not a GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            raise self._error(f"has GGUF version {version}", hint="2 and 3 are supported")
        tensors, values = self._count(), self._count()
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            name = self._string()
            self.metadata[name] = self._value(self._number("I"))
        self._tensors: dict[str, _Tensor] = {}
        for _ in range(tensors):
            name, dimensions = self._string(), self._number("I")
            if dimensions > 4:
                raise self._error(f"gives the tensor '{name}' {dimensions} dimensions")
            shape = tuple(int(self._number("Q")) for _ in range(dimensions))[::-1]
            self._tensors[name] = _Tensor(shape, int(self._number("I")), int(self._number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._error(f"has the alignment {alignment!r}")
        self._data = -(-self._at // alignment) * alignment

    @property
    def tensor_names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32, its dimensions as in PyTorch.

        Raises ModelError if its format is not supported, or if the file ends before it does.
        """
        info = self._tensors[name]
        if info.kind not in _FORMATS:
            known = ", ".join(form.name for form in _FORMATS.values())
            raise self._error(f"holds '{name}' in the format number {info.kind}", hint=f"supported: {known}")
        form = _FORMATS[info.kind]
        size = math.prod(info.shape)
        if info.shape[-1] % form.block:
            raise self._error(f"holds '{name}' with rows of {info.shape[-1]} values, not a multiple of {form.block}")
        begin, length = self._data + info.offset, size // form.block * form.block_bytes
        if begin + length > len(self._bytes):
            raise self._error(f"ends before the tensor '{name}' does")
        blocks = np.frombuffer(self._bytes, np.uint8, length, begin).reshape(-1, form.block_bytes)
        return torch.from_numpy(form.widen(blocks).reshape(info.shape))

    def _error(self, message: str, hint: str = "") -> ModelError:
        return ModelError(message, where=str(self.path), hint=hint)

    def _take(self, length: int) -> memoryview:
        if length > len(self._bytes) - self._at:
            raise self._error("ends in the middle of its header")
        self._at += length
        return self._bytes[self._at - length : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > _MOST_ITEMS:
            raise self._error(f"counts {count} items in its header")
        return count

    def _string(self) -> str:
        return bytes(self._take(int(self._number("Q")))).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = int(self._number("I")), self._count()
            if item == _ARRAY:
                raise self._error("nests an array in an array")
            if item in _SCALARS:
                form = f"<{count}{_SCALARS[item]}"
                return list(struct.unpack(form, self._take(struct.calcsize(form))))
            return [self._value(item) for _ in range(count)]
        if kind not in _SCALARS:
            raise self._error(f"holds a value of the unknown kind {kind}")
        return self._number(_SCALARS[kind])


@dataclass(frozen=True)
class _Format:
    """How one kind of tensor is laid out: `block` values in `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int
    widen: Callable[[Bytes], Floats]


def _plain(dtype: str) -> Callable[[Bytes], Floats]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    # A bfloat16 is the upper half of a float32.
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _half(blocks: Bytes, at: int) -> Floats:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Floats:
    """The lower halves of all bytes, then the upper halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=1).astype(np.float32)


_FORMATS = {
    0: _Format("F32", 1, 4, _plain("<f4")),
    1: _Format("F16", 1, 2, _plain("<f2")),
    2: _Format("Q4_0", 32, 18, _q4_0),
    3: _Format("Q4_1", 32, 20, _q4_1),
    8: _Format("Q8_0", 32, 34, _q8_0),
    30: _Format("BF16", 1, 2, _bf16),
}
