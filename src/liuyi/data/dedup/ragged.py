"""Lists of values, one list a document, as Arrow and as flat arrays with the document of each value beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]


def as_lists(owners: Ints, values: pa.Array | NDArray[Any], documents: int) -> pa.ListArray:
    """Flat values as lists; `owners` has the document of each, from 0, ascending."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=documents))])
    flat = values if isinstance(values, pa.Array) else pa.array(np.ascontiguousarray(values))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def as_flat(column: pa.ChunkedArray, first: int = 0) -> tuple[NDArray[Any], Ints]:
    """All values of lists, and the document of each; `first` is the number of the first document."""
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), first + np.repeat(np.arange(len(lists)), counts)


def changes(*columns: NDArray[Any]) -> Ints:
    """Where runs of equal values begin: the places at which any of the columns is not what it was before."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(new)
