"""One packed matrix and its product, without a model around it: for tests and micro-benchmarks.

layer = PackedLinear("int8", [Part(weight)], columns=576)
y = layer.times(x)                              # [tokens, rows] float32, for x [tokens, columns] float32
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.kernels.library import KernelsError, Library, instruction_set_number, kernels
from liuyi.kernels.parts import WEIGHT_FORMATS, Part, Sources

Floats = NDArray[np.float32]
EPILOGUES = {"store": 0, "add": 1, "swiglu": 2}


class PackedLinear:
    """A matrix [rows, columns], or several stacked, packed in a number format.

    `gated`: gate and up, stacked, for the "swiglu" epilogue. `rounds_x` (format bf16): round x to bfloat16 and use
    vdpbf16ps or AMX; None for what is fast on this processor. `instruction_set` is the library's unless given.
    """

    def __init__(
        self,
        weight_format: str,
        parts: Sequence[Part],
        columns: int,
        *,
        gated: bool = False,
        rounds_x: bool | None = None,
        instruction_set: str | None = None,
        library: Library | None = None,
    ) -> None:
        self.library = library or kernels()
        functions = self.library.functions
        _declare(functions)
        self._set = instruction_set_number(instruction_set or self.library.instruction_set)
        self.weight_format, self.gated = weight_format, gated
        sources = Sources(parts, columns, "the layer")
        self.rows, self.columns = sources.rows, columns
        number = WEIGHT_FORMATS[weight_format]
        if any(source.format > WEIGHT_FORMATS["bf16"] and source.format != number for source in sources.array):
            raise KernelsError(f"quantised weights can only be packed in their own format, not in {weight_format}")
        choice = -1 if rounds_x is None else int(rounds_x)
        self._packed = functions.liuyi_linear_new(
            self._set, number, self.rows, self.columns, int(gated), choice, sources.array
        )
        if not self._packed:
            raise KernelsError("there is not enough memory for the packed weights")
        weakref.finalize(self, functions.liuyi_linear_free, self._packed)
        self.panels: int = functions.liuyi_linear_panels(self._packed)
        self.bytes: int = functions.liuyi_linear_bytes(self._packed)
        self.prepared_bytes: int = functions.liuyi_linear_prepared_bytes(self._packed)

    def weights(self) -> Floats:
        """The matrix that the packed numbers stand for, [rows, columns]."""
        out = np.empty((self.rows, self.columns), np.float32)
        for row in range(self.rows):
            self.library.functions.liuyi_linear_unpack(self._packed, row, out[row].ctypes.data)
        return out

    def prepare(self, x: Floats) -> NDArray[np.uint8]:
        """Rows of x [tokens, columns] in what the format multiplies with, [tokens, prepared_bytes]."""
        x = np.ascontiguousarray(x, np.float32)
        out = aligned((len(x), self.prepared_bytes), np.uint8)
        self.library.functions.liuyi_linear_prepare(self._packed, self._set, x.ctypes.data, len(x), out.ctypes.data)
        return out

    def multiply(
        self,
        prepared: NDArray[np.uint8],
        y: Floats,
        *,
        tokens: tuple[int, int] | None = None,
        panels: tuple[int, int] | None = None,
        epilogue: str = "store",
    ) -> None:
        """The products of some tokens with some panels of 32 rows (all by default), into y [tokens, ≥ rows]."""
        self.library.functions.liuyi_linear_multiply(
            self._packed,
            self._set,
            prepared.ctypes.data,
            *(tokens or (0, len(prepared))),
            *(panels or (0, self.panels)),
            y.ctypes.data,
            y.strides[0] // 4,
            EPILOGUES[epilogue],
        )

    def times(self, x: Floats, epilogue: str = "store") -> Floats:
        """x·Wᵀ [tokens, rows], or silu(gate)·up [tokens, rows / 2]."""
        y = aligned((len(x), self.rows // 2 if epilogue == "swiglu" else self.rows), np.float32)
        self.multiply(self.prepare(x), y, epilogue=epilogue)
        return y


def aligned(shape: tuple[int, int], dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _declare(functions: ctypes.CDLL) -> None:
    declared = {
        "new": (c_void_p, *[c_int] * 6, c_void_p),
        "free": (None, c_void_p),
        "panels": (c_int, c_void_p),
        "bytes": (c_int64, c_void_p),
        "prepared_bytes": (c_int64, c_void_p),
        "unpack": (None, c_void_p, c_int, c_void_p),
        "prepare": (None, c_void_p, c_int, c_void_p, c_int, c_void_p),
        "multiply": (None, c_void_p, c_int, c_void_p, *[c_int] * 4, c_void_p, c_int64, c_int),
    }
    for name, (result, *arguments) in declared.items():
        function = getattr(functions, f"liuyi_linear_{name}")
        function.restype = result
        function.argtypes = arguments
