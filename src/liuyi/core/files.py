"""The files of an artifact: listed and hashed when it is published, compared with the manifest when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from liuyi.core.artifact import MANIFEST, FileEntry, Manifest
from liuyi.core.digest import files_digest, sha256_file
from liuyi.core.errors import ArtifactError

SCHEMA_VERSION = 1
"""The newest form of a manifest that is understood here."""


def scan(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder`, hashed, in the order of their names.

    Raises ArtifactError for what an artifact cannot hold: links, devices, names that are not UTF-8, no file at all.
    """
    entries = []
    for name in file_names(folder):
        path = folder / name
        if not is_safe(name):
            raise ArtifactError(f"the name {name!r} is not UTF-8", where=str(folder))
        if path.is_symlink() or not path.is_file():
            raise ArtifactError("an artifact holds files and folders only", where=str(path))
        entries.append(FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256_file(path)))
    if not entries:
        raise ArtifactError("an artifact needs at least one file", where=str(folder))
    return tuple(entries)


def file_names(folder: Path) -> list[str]:
    """The relative POSIX names of everything below `folder` but folders and the manifest, sorted."""
    names = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        names += [(Path(parent) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(name for name in names if name != MANIFEST)


def digest_of(entries: Iterable[FileEntry]) -> str:
    """The digest of an artifact with these files."""
    return files_digest({entry.path: entry.sha256 for entry in entries})


def problems(folder: Path, manifest: Manifest, *, read: bool = True, only: str = "") -> list[str]:
    """What is wrong with the files of an artifact, each as `file: what`.

    Without `read`, what a listing shows; with `only`, what is wrong with that one file.
    """
    found = []
    expected = {entry.path: entry for entry in manifest.files}
    for name, entry in sorted(expected.items()):
        if only and name != only:
            continue
        path = folder / name
        if not path.is_file() or path.is_symlink():
            found.append(f"{name}: missing")
        elif (size := path.stat().st_size) != entry.bytes:
            found.append(f"{name}: has {size} bytes instead of {entry.bytes}")
        elif read and sha256_file(path) != entry.sha256:
            found.append(f"{name}: its bytes have changed")
    if read and not only:
        found += [f"{name}: not in the manifest" for name in file_names(folder) if name not in expected]
    return found


def parse_manifest(text: str | bytes, digest: str, where: str) -> Manifest:
    """The manifest of the artifact `digest`.

    Raises ArtifactError if it is not one, belongs to another artifact, or does not add up to the digest.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise ArtifactError(f"artifact {digest[:12]} has a broken {MANIFEST}: {reason}", where=where) from error
    if manifest.schema_version > SCHEMA_VERSION:
        message = f"artifact {digest[:12]} was written by a newer version of Liuyi"
        raise ArtifactError(message, where=where, hint="update Liuyi to read it")
    for entry in manifest.files:
        if not is_safe(entry.path):
            raise ArtifactError(f"artifact {digest[:12]} names the unsafe path {entry.path!r}", where=where)
    if manifest.digest != digest or digest_of(manifest.files) != digest:
        raise ArtifactError(
            f"artifact {digest[:12]} has a {MANIFEST} that belongs to other files: it adds up to another digest",
            where=where,
        )
    return manifest


def is_safe(name: str) -> bool:
    """Whether a relative POSIX name stays inside its folder, is UTF-8 and is written in its one normal way."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path) == name
        and "\0" not in name
    )
