"""Matrices on their way into native memory: numpy arrays as the library's `Source`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array as CArray
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.kernels.library import KernelsError, Source

WEIGHT_FORMATS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
INT8_BLOCK = 64
"""An int8 group is of one to four blocks of columns."""
INT4_GROUP = 32
"""Columns that share a scale in int4."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """A matrix, or one of several stacked top to bottom.

    `values` [rows, columns] is float32, bfloat16 as uint16 bits, int8 (−127..127) [rows, whole groups of columns],
    rotated in groups of `int8_group(columns)`, with `scales` [rows, groups] as bfloat16 bits, or int4 as uint8 [rows,
    ⌈columns / 2⌉], the even column in the lower half, with `scales` and `minima` [rows, groups of 32 columns] as
    bfloat16 bits: weight = scale·number + minimum. `bias` [rows] is float32.
    """

    values: Array
    bias: Array | None = None
    scales: Array | None = None
    minima: Array | None = None


def int8_group(columns: int) -> int:
    """Columns that share a scale in int8: the most blocks up to four that divide a row, filled up to whole blocks."""
    blocks = -(-columns // INT8_BLOCK)
    return INT8_BLOCK * next(count for count in (4, 3, 2, 1) if blocks % count == 0)


class Sources:
    """Parts as the C structures that point to them; they point as long as this lives."""

    def __init__(self, parts: Sequence[Part], columns: int, what: str) -> None:
        """Raises KernelsError if the parts are not matrices of `columns` columns; `what` names them there."""
        self._kept: list[Array] = []
        self.array: CArray[Source] = (Source * len(parts))()
        self.rows = 0
        for source, part in zip(self.array, parts, strict=True):
            source.format, group, stored = _format_of(part.values, columns)
            if part.values.ndim != 2 or part.values.shape[1] != stored:
                raise KernelsError(f"{what} has {columns} columns, stored as {stored}, not {list(part.values.shape)}")
            source.rows = part.values.shape[0]
            source.values = self._keep(part.values, part.values.dtype)
            self.rows += source.rows
            groups = (source.rows, -(-columns // group)) if group else None
            for name, values in (("scales", part.scales), ("minima", part.minima)):
                wanted = groups if name == "scales" or source.format == WEIGHT_FORMATS["int4"] else None
                if (values is None) != (wanted is None) or (values is not None and values.shape != wanted):
                    shape = None if values is None else list(values.shape)
                    raise KernelsError(f"{what}: {name} {shape} do not fit weights {list(part.values.shape)}")
                if values is not None:
                    setattr(source, name, self._keep(values, np.dtype(np.uint16)))
            if part.bias is not None:
                if part.bias.shape != (source.rows,):
                    raise KernelsError(f"{what}: a bias {list(part.bias.shape)} does not fit {source.rows} rows")
                source.bias = self._keep(part.bias, np.dtype(np.float32))

    def _keep(self, values: Array, dtype: np.dtype[Any]) -> int:
        values = np.ascontiguousarray(values, dtype=dtype)
        self._kept.append(values)
        return int(values.ctypes.data)


def _format_of(values: Array, columns: int) -> tuple[int, int, int]:
    """The number of the format, its group (0 for none), and how many numbers a row of the array has."""
    known = {
        "float32": ("fp32", 0, columns),
        "uint16": ("bf16", 0, columns),
        "int8": ("int8", int8_group(columns), -(-columns // INT8_BLOCK) * INT8_BLOCK),
        "uint8": ("int4", INT4_GROUP, (columns + 1) // 2),
    }
    if values.dtype.name not in known:
        raise KernelsError(f"weights are float32, bfloat16 bits, int8 or int4, not {values.dtype.name}")
    name, group, stored = known[values.dtype.name]
    return WEIGHT_FORMATS[name], group, stored
