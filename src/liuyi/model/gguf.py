"""GGUF files, the format of llama.cpp: metadata and tensors, read without trusting a single length in them.

    file = GGUF(path)
    file.metadata["general.architecture"], file.tensor("token_embd.weight")

The file's layout is as in the format's specification (ggml, `docs/gguf.md`), that of tensors as in `gguf_formats.py`.
The file is mapped, not read: a tensor takes memory when it is asked for, and no more than its values need.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liuyi.core.errors import ModelError
from liuyi.model.gguf_formats import FORMATS, Format

if TYPE_CHECKING:
    from torch import Tensor

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 1 << 24
_MOST_VALUES = 1 << 40


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    form: int
    offset: int


class GGUF:
    """An open GGUF file; tensors are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError if the file is not GGUF, of a version other than 2 or 3, or damaged."""
        self.path = path
        try:
            with path.open("rb") as file:
                if path.stat().st_size < 24:
                    raise self._error("is too short for a GGUF file")
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from error
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
            if not 1 <= dimensions <= 4:
                raise self._error(f"gives the tensor '{name}' {dimensions} dimensions")
            shape = tuple(int(self._number("Q")) for _ in range(dimensions))[::-1]
            if name in self._tensors:
                raise self._error(f"holds the tensor '{name}' twice")
            self._tensors[name] = _Tensor(shape, int(self._number("I")), int(self._number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._error(f"has the alignment {alignment!r}")
        self._data = -(-self._at // alignment) * alignment

    @property
    def tensor_names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The dimensions of a tensor, as in PyTorch."""
        return self._tensors[name].shape

    def format(self, name: str) -> Format:
        """The number format of a tensor. Raises ModelError if it is not supported."""
        number = self._tensors[name].form
        if number not in FORMATS:
            known = ", ".join(form.name for form in FORMATS.values())
            raise self._error(f"holds '{name}' in the format number {number}", hint=f"supported: {known}")
        return FORMATS[number]

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, as they lie in the file.

        Raises ModelError if its format is not supported, or if the file ends before it does.
        """
        info, form = self._tensors[name], self.format(name)
        size = math.prod(info.shape)
        if not 0 < size < _MOST_VALUES:
            raise self._error(f"gives the tensor '{name}' the shape {list(info.shape)}")
        if info.shape[-1] % form.values:
            raise self._error(f"holds '{name}' with rows of {info.shape[-1]} values, not a multiple of {form.values}")
        begin, length = self._data + info.offset, form.bytes_for(size)
        if begin + length > len(self._bytes):
            raise self._error(f"ends before the tensor '{name}' does")
        return self._bytes[begin : begin + length]

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32. Raises ModelError as `data` does, and if it holds values that are not finite."""
        import torch

        with np.errstate(invalid="ignore"):
            values = self.format(name).widen(self.data(name))
        if not np.isfinite(values).all():
            raise self._error(f"holds values in '{name}' that are not finite")
        return torch.from_numpy(values.reshape(self.shape(name)))

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
