"""Artifacts behind an fsspec address: files first and the manifest last, for there is no atomic rename.

An artifact without its manifest is not there: what a killed upload leaves is invisible, and overwritten by the next.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.artifact import MANIFEST, Manifest
from liuyi.core.errors import ArtifactError
from liuyi.core.files import parse_manifest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_CHUNK_BYTES = 8 << 20


class ObjectStore:
    """`<root>/<digest[:2]>/<digest>/` holds an artifact."""

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    def has(self, digest: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._at(digest, MANIFEST)))

    def digests(self, prefix: str = "") -> Iterator[str]:
        self._fs.invalidate_cache()
        shards = [prefix[:2]] if len(prefix) >= 2 else sorted(self._names(self._root))
        for shard in shards:
            for digest in sorted(self._names(f"{self._root}/{shard}")):
                if len(digest) == 64 and digest.startswith(prefix) and self._fs.exists(self._at(digest, MANIFEST)):
                    yield digest

    def manifest(self, digest: str) -> Manifest:
        path = self._at(digest, MANIFEST)
        try:
            text = self._fs.cat_file(path)
        except FileNotFoundError:
            raise ArtifactError(f"artifact {digest[:12]} has no {MANIFEST}", where=path) from None
        return parse_manifest(text, digest, path)

    def upload(self, folder: Path, manifest: Manifest) -> None:
        """Copy a local artifact there. One that is complete there already stays, and counts as published now."""
        digest = manifest.digest
        if not self.has(digest) or self.problems(digest, read=False):
            for entry in manifest.files:
                path = self._at(digest, entry.path)
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                with (folder / entry.path).open("rb") as source, self._fs.open(path, "wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
        self._fs.pipe_file(self._at(digest, MANIFEST), manifest.model_dump_json(indent=1).encode())

    def download(self, manifest: Manifest, folder: Path) -> None:
        """Copy the files of an artifact from there into a local folder; a file that is missing is left out."""
        for entry in manifest.files:
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._fs.open(self._at(manifest.digest, entry.path), "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
            except FileNotFoundError:
                target.unlink(missing_ok=True)

    def problems(self, digest: str, *, read: bool = True) -> list[str]:
        """What is wrong with an artifact, each as `file: what`."""
        try:
            manifest = self.manifest(digest)
        except ArtifactError as error:
            return [f"{MANIFEST}: {error.message}"]
        self._fs.invalidate_cache()
        prefix = self._at(digest, "")
        sizes = {
            path[path.index(prefix) + len(prefix) :]: info["size"]
            for path, info in self._fs.find(prefix, detail=True).items()
        }
        found = []
        for entry in manifest.files:
            if entry.path not in sizes:
                found.append(f"{entry.path}: missing")
            elif sizes[entry.path] != entry.bytes:
                found.append(f"{entry.path}: has {sizes[entry.path]} bytes instead of {entry.bytes}")
            elif read and self._sha256(digest, entry.path) != entry.sha256:
                found.append(f"{entry.path}: its bytes have changed")
        known = {MANIFEST, *(entry.path for entry in manifest.files)}
        if read:
            found += [f"{name}: not in the manifest" for name in sorted(sizes) if name not in known]
        return found

    def published(self, digest: str) -> float:
        """When the artifact was last published, in seconds since the epoch."""
        try:
            modified = self._fs.modified(self._at(digest, MANIFEST))
        except NotImplementedError:
            modified = datetime.fromisoformat(self.manifest(digest).created)
        return float(modified.timestamp())

    def delete(self, digest: str) -> None:
        """Remove an artifact; its manifest goes first, so that no half of it is visible."""
        self._fs.invalidate_cache()
        if self._fs.exists(self._at(digest, MANIFEST)):
            self._fs.rm_file(self._at(digest, MANIFEST))
        if self._fs.exists(self._at(digest, "")):
            self._fs.rm(self._at(digest, ""), recursive=True)

    def _at(self, digest: str, name: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}/{name}"

    def _names(self, path: str) -> list[str]:
        try:
            listed = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in listed]

    def _sha256(self, digest: str, name: str) -> str:
        with self._fs.open(self._at(digest, name), "rb") as file:
            found = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
            return found.hexdigest()
