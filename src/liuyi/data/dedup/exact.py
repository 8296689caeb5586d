"""Exact duplicates: equal text once case, white space and compatible forms of characters no longer count."""

from __future__ import annotations

import hashlib
import unicodedata

from liuyi.data.clean.batch import Batch


def fingerprint(text: str) -> str:
    """128 bits of SHA-256 of the text, lower-cased, NFKC, white space collapsed; as hex."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:32]


def fingerprints(batch: Batch) -> dict[str, list[str]]:
    """The fingerprint of each document."""
    return {"fingerprint": [fingerprint(text) for text in batch.strings]}
