"""Artifacts in a local folder: filled beside, flushed, and made visible by one rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from liuyi.core.artifact import MANIFEST, Manifest
from liuyi.core.disk import full_disk_is_told, sync, sync_tree
from liuyi.core.errors import ArtifactError
from liuyi.core.files import parse_manifest, problems
from liuyi.core.owner import this_process


class FolderStore:
    """`<root>/<digest[:2]>/<digest>/` holds an artifact, `<root>/staging/` what is still being written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "staging"

    def stage(self) -> Path:
        """A fresh folder on the same filesystem, named after this process so that leftovers can be told."""
        folder = self.staging / f"{this_process()}:{secrets.token_hex(6)}"
        try:
            with full_disk_is_told("preparing an artifact", self.root):
                folder.mkdir(parents=True)
        except OSError as error:
            raise ArtifactError(f"the store cannot be written: {error.strerror}", where=str(self.root)) from error
        return folder

    def adopt(self, folder: Path, manifest: Manifest) -> None:
        """Make a staged folder the artifact of that manifest; an undamaged one that is already there stays."""
        target = self.folder(manifest.digest)
        with full_disk_is_told("publishing an artifact", self.root):
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
            sync_tree(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            while not _rename(folder, target):
                if not self.problems(manifest.digest):
                    os.utime(target / MANIFEST)
                    shutil.rmtree(folder)
                    return
                self.delete(manifest.digest)
            sync(target.parent)

    def folder(self, digest: str) -> Path:
        return self.root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        return (self.folder(digest) / MANIFEST).is_file()

    def digests(self, prefix: str = "") -> Iterator[str]:
        """The digests of all artifacts, sorted, or of those whose digest begins with `prefix`."""
        shards = [self.root / prefix[:2]] if len(prefix) >= 2 else sorted(self.root.glob("[0-9a-f][0-9a-f]"))
        for shard in filter(Path.is_dir, shards):
            yield from sorted(path.name for path in shard.iterdir() if path.name.startswith(prefix))

    def manifest(self, digest: str) -> Manifest:
        path = self.folder(digest) / MANIFEST
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"artifact {digest[:12]} has no {MANIFEST}", where=str(path.parent)) from None
        return parse_manifest(text, digest, str(path))

    def problems(self, digest: str, *, read: bool = True) -> list[str]:
        """What is wrong with an artifact, each as `file: what`."""
        try:
            manifest = self.manifest(digest)
            return problems(self.folder(digest), manifest, read=read)
        except ArtifactError as error:
            return [f"{MANIFEST}: {error.message}"]

    def published(self, digest: str) -> float:
        """When the artifact was last published, in seconds since the epoch."""
        return (self.folder(digest) / MANIFEST).stat().st_mtime

    def delete(self, digest: str) -> None:
        """Remove an artifact; it vanishes as a whole."""
        doomed = self.staging / f"{this_process()}:{secrets.token_hex(6)}"
        self.staging.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self.folder(digest).rename(doomed)
            shutil.rmtree(doomed)


def _rename(folder: Path, target: Path) -> bool:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
