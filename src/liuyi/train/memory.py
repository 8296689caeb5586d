"""Memory that a step gives back is kept for the next one.

glibc returns large blocks to the system as soon as they are free, and the system clears each page again when it is next
touched: for the activations of a model of 135M parameters that takes longer than their matrix products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3)."""
_USUAL_TRIM_BYTES, _USUAL_MAPPED_BLOCKS = 128 << 10, 65536


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the C library keep what is freed within the block; at its end everything goes back. Elsewhere than under
    glibc nothing is changed."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MAPPED_BLOCKS)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_BYTES)
        libc.malloc_trim(0)
