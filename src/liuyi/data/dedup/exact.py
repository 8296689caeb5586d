"""Exact duplicates: equal text once case, white space and compatible forms of characters no longer count."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from liuyi.data.clean.batch import Batch


def fingerprint(text: str) -> str:
    """128 bits of SHA-256 of the text, lower-cased, NFKC, white space collapsed; as hex."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:32]


def fingerprints(batch: Batch) -> dict[str, list[str]]:
    """The fingerprint of each document."""
    return {"fingerprint": [fingerprint(text) for text in batch.strings]}


def as_numbers(fingerprints: Sequence[str]) -> NDArray[np.uint64]:
    """Fingerprints as numbers, [documents, 2], as `find_duplicates` takes them."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), ">u8").reshape(-1, 2).astype(np.uint64)
