"""The content-addressed store: an artifact is found by the digest of its bytes, and verified whenever it is opened.

    staging = store.stage("corpus")
    (staging.path / "documents.parquet").write_bytes(...)
    artifact = store.publish(staging, step="data.clean", step_key=key, output="corpus", inputs=[], params={})
    store.open(artifact.digest[:12]).file("documents.parquet")

A local folder publishes by rename. Any other fsspec address is read through a local cache and written files first,
manifest last. A half-written artifact is visible in neither.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from liuyi.core.artifact import MANIFEST, Artifact, InputRef, Kind, Manifest
from liuyi.core.disk import full_disk_is_told
from liuyi.core.errors import ArtifactError, did_you_mean
from liuyi.core.files import digest_of, problems, scan
from liuyi.core.folder_store import FolderStore
from liuyi.core.object_store import ObjectStore
from liuyi.core.secrets import hide_secrets
from liuyi.core.step import Staging

_SHORTEST_PREFIX = 6


class AmbiguousDigest(ArtifactError):
    """Several artifacts have a digest that begins so."""


class Store:
    """Artifacts at `url`: a folder's path, or any fsspec address, which is then read through `cache_dir`."""

    def __init__(self, url: str, cache_dir: Path) -> None:
        self.url = hide_secrets(url)
        path = _local_path(url)
        self._remote = None if path else _object_store(url)
        self._local = FolderStore(path or cache_dir)

    def __repr__(self) -> str:
        return f"Store({self.url})"

    def stage(self, kind: Kind) -> Staging:
        """A fresh folder to fill; give it to `publish`, or to `discard`."""
        return Staging(path=self._local.stage(), kind=kind)

    def discard(self, staging: Staging) -> None:
        """Remove a staged folder that will not be published."""
        shutil.rmtree(staging.path, ignore_errors=True)

    def publish(
        self,
        staging: Staging,
        *,
        step: str = "",
        step_key: str = "",
        output: str = "",
        inputs: Sequence[InputRef] = (),
        params: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Turn a staged folder into an artifact. Where the same bytes are there already, that artifact stays as it is.

        Raises ArtifactError for what an artifact cannot hold, OutOfDisk if there is no room; either way nothing is
        published and the staged folder is gone.
        """
        try:
            if (staging.path / MANIFEST).exists():
                raise ArtifactError(f"a step cannot write {MANIFEST} itself", where=f"{step}.{output}")
            files = scan(staging.path)
            manifest = Manifest(
                kind=staging.kind,
                digest=digest_of(files),
                files=files,
                step=step,
                step_key=step_key,
                output=output,
                inputs=tuple(inputs),
                params=dict(params or {}),
                metrics={name: float(value) for name, value in sorted(staging.metrics.items())},
                licences=tuple(sorted(staging.licences)),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            return self.add(staging.path, manifest)
        finally:
            self.discard(staging)

    def add(self, folder: Path, manifest: Manifest) -> Artifact:
        """Take a staged folder whose files and manifest are known to agree, such as one from an archive."""
        digest = manifest.digest
        self._local.adopt(folder, manifest)
        if self._remote:
            with full_disk_is_told("uploading an artifact", Path(self.url)):
                self._remote.upload(self._local.folder(digest), manifest)
        return Artifact(self._local.manifest(digest), self._local.folder(digest))

    def has(self, digest: str) -> bool:
        """Whether the store holds the artifact with that full digest."""
        return self._remote.has(digest) if self._remote else self._local.has(digest)

    def resolve(self, ref: str) -> str:
        """The full digest for a digest or a unique beginning of one, of at least 6 characters.

        Raises ArtifactError, naming the candidates, if there is none or more than one.
        """
        if not re.fullmatch(r"[0-9a-f]{1,64}", ref):
            raise ArtifactError(f"'{ref}' is not the beginning of a digest", hint="a digest is 64 characters of 0-9a-f")
        if len(ref) < _SHORTEST_PREFIX:
            raise ArtifactError(f"'{ref}' is too short to name an artifact", hint=f"give {_SHORTEST_PREFIX} characters")
        found = [ref] if len(ref) == 64 and self.has(ref) else list(self.digests(ref))
        if not found:
            raise ArtifactError(f"there is no artifact '{ref}'", where=self.url)
        if len(found) > 1:
            names = "\n  ".join(self._describe(digest) for digest in found[:9])
            raise AmbiguousDigest(f"'{ref}' is the beginning of {len(found)} artifacts", hint=names)
        return found[0]

    def open(self, ref: str, verify: bool = True) -> Artifact:
        """The artifact, on this machine; with `verify`, every byte of it is compared with its digest.

        Raises ArtifactError, naming artifact and file, if it is unknown or damaged.
        """
        digest = self.resolve(ref)
        if self._remote and (not self._local.has(digest) or self._local.problems(digest, read=verify)):
            self._fetch(digest)
        manifest = self._local.manifest(digest)
        self._demand_sound(manifest, self._local.problems(digest, read=verify) if not self._remote else [])
        return Artifact(manifest, self._local.folder(digest))

    def open_file(self, ref: str, name: str) -> Path:
        """One file of an artifact, on this machine; its bytes alone are compared with its digest.

        Raises ArtifactError if the artifact or the file is unknown or damaged.
        """
        digest = self.resolve(ref)
        if self._remote and (not self._local.has(digest) or self._local.problems(digest, read=False)):
            self._fetch(digest)
        manifest = self._local.manifest(digest)
        known = [entry.path for entry in manifest.files]
        if name not in known:
            hint = did_you_mean(name, known)
            raise ArtifactError(f"{manifest.kind} {digest[:12]} has no file '{name}'", where=self.url, hint=hint)
        self._demand_sound(manifest, problems(self._local.folder(digest), manifest, only=name))
        return self._local.folder(digest) / name

    def verify(self, digest: str) -> list[str]:
        """What is wrong with an artifact where it is kept, each as `file: what`; empty if it is sound."""
        return self._remote.problems(digest) if self._remote else self._local.problems(digest)

    def manifest(self, digest: str) -> Manifest:
        """What the artifact is and where it came from. Raises ArtifactError if it is unknown or broken."""
        return self._remote.manifest(digest) if self._remote else self._local.manifest(digest)

    def digests(self, prefix: str = "") -> Iterator[str]:
        """The digest of every artifact, sorted, or of those that begin with `prefix`."""
        return self._remote.digests(prefix) if self._remote else self._local.digests(prefix)

    def list(self) -> Iterator[Manifest]:
        """The manifest of every artifact, in the order of digests. Raises ArtifactError at a broken one."""
        return (self.manifest(digest) for digest in self.digests())

    def published(self, digest: str) -> float:
        """When the artifact was last published, in seconds since the epoch."""
        return self._remote.published(digest) if self._remote else self._local.published(digest)

    def delete(self, digest: str) -> None:
        """Remove an artifact, from the cache too; one that is not there is no error."""
        if self._remote:
            self._remote.delete(digest)
        self._local.delete(digest)

    @property
    def staging(self) -> Path:
        """The folder of what is still being written."""
        return self._local.staging

    def _fetch(self, digest: str) -> None:
        assert self._remote
        manifest = self._remote.manifest(digest)
        folder = self._local.stage()
        try:
            with full_disk_is_told("fetching an artifact", self._local.root):
                self._remote.download(manifest, folder)
            self._demand_sound(manifest, problems(folder, manifest))
            self._local.delete(digest)
            self._local.adopt(folder, manifest)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _demand_sound(self, manifest: Manifest, found: Sequence[str]) -> None:
        if found:
            raise ArtifactError(
                f"{manifest.kind} {manifest.digest[:12]} is damaged: {'; '.join(found)}",
                where=self.url,
                hint=f"'liuyi verify --remove {manifest.digest[:12]}' removes it; the next run makes it again",
            )

    def _describe(self, digest: str) -> str:
        try:
            manifest = self.manifest(digest)
        except ArtifactError:
            return f"{digest[:16]} (broken)"
        return f"{digest[:16]} {manifest.kind} from {manifest.step or 'elsewhere'}"


def _local_path(url: str) -> Path | None:
    if "://" not in url:
        return Path(url).expanduser().absolute()
    return Path(url.removeprefix("file://")).absolute() if url.startswith("file://") else None


def _object_store(url: str) -> ObjectStore:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ArtifactError(f"the store's address cannot be used: {error}", where=hide_secrets(url)) from None
    return ObjectStore(filesystem, root)
