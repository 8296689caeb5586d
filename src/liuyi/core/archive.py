"""An artifact with all it came from in one tar file, to carry it to another home.

    liuyi.json                            what is in it, ancestors first, and the executions that made it
    artifacts/<digest>/manifest.json      then the artifact's files, in the manifest's order

An archive may come from anybody. Nothing but these names is read, each at its place and of its stated size; links,
devices and other paths are refused, and nothing is kept before every byte agreed with its digest.
"""

from __future__ import annotations

import io
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from liuyi.core.artifact import MANIFEST, Manifest
from liuyi.core.disk import full_disk_is_told, sync
from liuyi.core.errors import ArtifactError
from liuyi.core.files import parse_manifest, problems
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.records import Execution

INDEX = "liuyi.json"
_LARGEST_JSON_BYTES = 256 << 20
_CHUNK_BYTES = 8 << 20

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Index(BaseModel):
    """What an archive holds."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    root: Digest
    artifacts: tuple[Digest, ...]
    executions: tuple[Execution, ...] = ()


@dataclass(frozen=True)
class Packed:
    """What went into an archive, or came out of it."""

    root: Manifest
    artifacts: tuple[Manifest, ...]
    """Ancestors first; the last one is the root."""
    absent: tuple[str, ...] = ()
    """Ancestors that the store no longer holds: they are in the records only."""


def export_archive(home: Home, digest: str, path: Path, *, alone: bool = False) -> Packed:
    """Write the artifact and what it came from to `path`; with `alone`, the artifact itself and all the records.

    The file is there whole or not at all, and the same for the same content. Raises ArtifactError if an artifact is
    damaged, OutOfDisk if there is no room.
    """
    graph = Graph(home)
    history = graph.history([digest])
    wanted = {digest} if alone else graph.ancestors([digest])
    ordered = _ancestors_first(graph, digest)
    present = [ancestor for ancestor in ordered if ancestor in wanted and home.store.has(ancestor)]
    home.store.resolve(digest)
    index = Index(root=digest, artifacts=tuple(present), executions=tuple(history))
    manifests = []
    with _written(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _put_bytes(tar, INDEX, index.model_dump_json(indent=1).encode())
        for name in present:
            artifact = home.store.open(name)
            manifests.append(artifact.manifest)
            _put_bytes(tar, f"artifacts/{name}/{MANIFEST}", artifact.manifest.model_dump_json(indent=1).encode())
            for entry in artifact.manifest.files:
                with artifact.file(entry.path).open("rb") as content:
                    tar.addfile(_member(f"artifacts/{name}/{entry.path}", entry.bytes), content)
    absent = tuple(ancestor for ancestor in ordered if ancestor not in present and not alone)
    return Packed(manifests[-1], tuple(manifests), absent)


def import_archive(home: Home, path: Path) -> Packed:
    """Take everything from an archive into the store and the ledger, and pin its root.

    Work that this ledger knows stays as it is known here. Raises ArtifactError, and keeps nothing, if the archive is
    not whole, holds anything that it should not, or a byte does not agree with its digest.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar, ExitStack() as resources:
            reader = _Reader(tar, path)
            index = _parse_index(reader.json(INDEX), str(path))
            staged = [(resources.enter_context(_staged(home)), digest) for digest in index.artifacts]
            manifests = [reader.artifact(digest, folder) for folder, digest in staged]
            reader.end()
            return _keep(home, path, index, list(zip([folder for folder, _ in staged], manifests, strict=True)))
    except (tarfile.TarError, ValueError) as error:
        hint = "'liuyi export' writes archives; what else can be imported is a folder or a .gguf file"
        raise ArtifactError(f"this is not a whole archive: {error}", where=str(path), hint=hint) from error
    except OSError as error:
        raise ArtifactError(f"the archive cannot be read: {error.strerror}", where=str(path)) from error


def _keep(home: Home, path: Path, index: Index, staged: list[tuple[Path, Manifest]]) -> Packed:
    # The pin goes first: a collection that runs at the same time must not take what is just coming in.
    home.ledger.pin(index.root, f"imported from {path.name}")
    for folder, manifest in staged:
        home.store.add(folder, manifest)
        home.ledger.record_artifact(manifest)
    for execution in index.executions:
        if home.ledger.execution(execution.key) is None:
            home.ledger.record_execution(
                key=execution.key,
                step=execution.step,
                version=execution.version,
                params=execution.params,
                seed=execution.seed,
                device=execution.device,
                inputs=execution.inputs,
                outputs=execution.outputs,
                seconds=execution.seconds,
                created=execution.created,
            )
    manifests = tuple(manifest for _, manifest in staged)
    root = next(manifest for manifest in manifests if manifest.digest == index.root)
    return Packed(root, manifests)


class _Reader:
    """The members of an archive, each of which must be the one that is expected next."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self._tar, self._path = tar, path

    def json(self, name: str) -> bytes:
        member, content = self._next(name)
        if member.size > _LARGEST_JSON_BYTES:
            raise self._error(f"{name} is too large")
        return content.read()

    def artifact(self, digest: str, folder: Path) -> Manifest:
        """Read one artifact into a folder and compare every byte."""
        name = f"artifacts/{digest}/{MANIFEST}"
        manifest = parse_manifest(self.json(name), digest, f"{self._path}, {name}")
        for entry in manifest.files:
            member, content = self._next(f"artifacts/{digest}/{entry.path}")
            if member.size != entry.bytes:
                raise self._error(f"{member.name} has {member.size} bytes instead of {entry.bytes}")
            target = folder / entry.path
            with full_disk_is_told("unpacking an archive", folder):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    shutil.copyfileobj(content, file, _CHUNK_BYTES)
        found = problems(folder, manifest)
        if found:
            raise self._error(f"{manifest.kind} {digest[:12]} is damaged: {'; '.join(found)}")
        return manifest

    def end(self) -> None:
        if member := self._tar.next():
            raise self._error(f"it also holds {member.name!r}, which no artifact names")

    def _next(self, name: str) -> tuple[tarfile.TarInfo, IO[bytes]]:
        member = self._tar.next()
        if member is None:
            raise self._error(f"it ends before {name}")
        if member.name != name:
            raise self._error(f"it holds {member.name!r} where {name} should be")
        content = self._tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if content is None:
            raise self._error(f"{name} is not a plain file")
        return member, content

    def _error(self, message: str) -> ArtifactError:
        return ArtifactError(f"this archive cannot be used: {message}", where=str(self._path))


def _parse_index(text: bytes, where: str) -> Index:
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"this archive cannot be used: {INDEX}: {field}: {first['msg']}", where=where) from error
    if index.root not in index.artifacts or len(set(index.artifacts)) < len(index.artifacts):
        raise ArtifactError(f"this archive cannot be used: {INDEX} does not list its artifacts", where=where)
    return index


def _ancestors_first(graph: Graph, digest: str) -> list[str]:
    ordered: dict[str, None] = {}
    entered: set[str] = set()

    def visit(node: str) -> None:
        if node not in entered:
            entered.add(node)
            for _, source in graph.inputs(node):
                visit(source)
            ordered[node] = None

    visit(digest)
    return list(ordered)


@contextmanager
def _staged(home: Home) -> Iterator[Path]:
    staging = home.store.stage("corpus")
    try:
        yield staging.path
    finally:
        home.store.discard(staging)


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only when it is complete."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with full_disk_is_told("writing an archive", path.parent):
            with part.open("xb") as file:
                yield file
            sync(part)
            part.replace(path)
    except OSError as error:
        raise ArtifactError(f"the archive cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member


def _put_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_member(name, len(data)), io.BytesIO(data))
