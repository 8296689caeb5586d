"""The rotation of int8 groups as one dense matrix, written from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIXING = {
    1: np.eye(1),
    2: np.array([[1, 1], [1, -1]]) / np.sqrt(2),
    3: np.eye(3) - 2 / 3,
    4: np.eye(4) - 1 / 2,
}
"""What is done to the blocks of 64 columns that a group has."""

HADAMARD = np.array([[(-1.0) ** (i & j).bit_count() for j in range(8)] for i in range(8)])


def group_of(columns: int) -> int:
    """Columns of a group: of four, three, two blocks or one, the first that divides the blocks of a row."""
    blocks = (columns + 63) // 64
    return 64 * max(count for count in MIXING if blocks % count == 0)


def rotation(group: int) -> NDArray[np.float64]:
    """R [group, group], with x·R for rows x. Of a block as an 8×8 matrix X it is H·Xᵀ·H / 8."""
    blocks = np.eye(64).reshape(64, 8, 8)
    one = (HADAMARD @ blocks.swapaxes(1, 2) @ HADAMARD / 8).reshape(64, 64)
    return np.kron(MIXING[group // 64], one)


def rotated(x: NDArray[Any]) -> NDArray[np.float64]:
    """Rows [rows, columns], filled up to whole blocks with zeros, each group rotated: its own inverse."""
    group = group_of(x.shape[1])
    filled = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % 64)))
    return (filled.reshape(len(x), -1, group) @ rotation(group)).reshape(filled.shape)
