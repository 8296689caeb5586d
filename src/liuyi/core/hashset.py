"""A set of hashes that many are looked up in at once: a small table of flags first, then the sorted hashes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_TABLE_BITS = (12, 24)
_SPARE_BITS = 4
"""The table has 16 places for each hash at least, so that it lets pass a sixteenth of what is not in the set."""


class HashSet:
    """Hashes, which may be there several times, ascending."""

    def __init__(self, keys: Hashes) -> None:
        self.keys = np.sort(keys)
        bits = int(np.clip(len(keys).bit_length() + _SPARE_BITS, *_TABLE_BITS))
        self._shift = np.uint64(64 - bits)
        self._flags = np.zeros(1 << bits, bool)
        self._flags[keys >> self._shift] = True

    def members(self, keys: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of `keys` are in the set, and where each stands first in `self.keys`."""
        likely = np.flatnonzero(self._flags[keys >> self._shift])
        if not len(likely):
            return likely, likely
        here = np.searchsorted(self.keys, keys[likely])
        here[here == len(self.keys)] = 0
        true = self.keys[here] == keys[likely]
        return likely[true], here[true]
