"""Digests: SHA-256 of bytes, of files, of folders and of canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the bytes of one file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value).encode())


def files_digest(files: Mapping[str, str]) -> str:
    """Digest of an artifact: SHA-256 over its sorted (path, SHA-256 of bytes) pairs."""
    return sha256_json(sorted(files.items()))


def sha256_tree(path: Path) -> str:
    """Digest of the content of a file, or of a folder: names and bytes of all files below it but hidden ones."""
    if not path.is_dir():
        return sha256_file(path)
    names = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    return files_digest({readable_name(name): sha256_file(path / name) for name in shown})


def readable_name(name: str) -> str:
    """A file's name as text that can be stored: of bytes that are not UTF-8, as in GBK, each is written as `\\xb0`."""
    return os.fsencode(name).decode(errors="backslashreplace")
