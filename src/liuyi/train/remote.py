"""Copies of checkpoints behind an fsspec address, for the day that the machine and its disk are gone.

Checkpoints are written to the local folder and copied from there by a thread of its own, so an address that is slow or
down never holds up training: that is told, and tried again with the newest checkpoint there is by then. Every file is
read back and compared with its digest; a list of the files and their digests comes last, and a checkpoint without it
is not there. A run that starts where the address holds a newer checkpoint than its own folder fetches it first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from liuyi.core.digest import sha256_file
from liuyi.core.disk import full_disk_is_told, sync_tree
from liuyi.core.errors import OutOfDisk, StepError
from liuyi.core.secrets import hide_secrets
from liuyi.train.retention import Name, Retention

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

COMPLETE = "complete.json"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""Between attempts; each pause is twice the one before it."""
FETCH_ATTEMPTS = 5
PATIENCE_S = 60.0
"""How long the end of a run waits for copies under way."""
_CHUNK_BYTES = 8 << 20


class RemoteCheckpoints:
    """The copies of one run's checkpoints, in the folder `run` below `url`; `warn` is told what goes wrong."""

    def __init__(self, url: str, run: str, retention: Retention, warn: Callable[[str], None]) -> None:
        self._url, self._run = url, run
        self._retention = retention
        self._warn = warn
        self._waiting: dict[Name, tuple[Path, Sequence[int]]] = {}
        self._copying: Name | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, url: str, run: str, retention: Retention, warn: Callable[[str], None]) -> RemoteCheckpoints | None:
        """None where there is no address."""
        return cls(url, run, retention, warn) if url else None

    def __repr__(self) -> str:
        return f"RemoteCheckpoints({hide_secrets(self._url)})"

    def offer(self, path: Path, anchors: Sequence[int] = ()) -> None:
        """Have a checkpoint copied in its turn; one that still waits is passed over for it, if it is no milestone."""
        name = Name.parse(path.name)
        assert name is not None
        with self._changed:
            late = [other for other in self._waiting if not self._retention.is_milestone(other.step)]
            for other in late:
                del self._waiting[other]
            self._waiting[name] = path, anchors
            if self._thread is None:
                self._thread = threading.Thread(target=self._copy_in_turn, name="checkpoint copies", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        for other in late:
            self._warn(f"checkpoint {other} is not copied to {hide_secrets(self._url)}: {name} came before its turn")

    def wanted(self) -> set[Name]:
        """The checkpoints that must stay on the disk because they wait to be copied."""
        with self._changed:
            return {*self._waiting, *([self._copying] if self._copying else [])}

    def close(self) -> None:
        """Wait for copies under way, but not for long."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._waiting and self._copying is None, PATIENCE_S)
            self._closed = True
            self._changed.notify_all()
        if not done:
            self._warn(f"the last checkpoints are not copied to {hide_secrets(self._url)} yet, and will not be")

    def fetch(self, folder: Path) -> None:
        """Bring the newest whole checkpoint here, if it is newer than those in `folder`.

        Raises StepError if the address cannot be read and `folder` has none to go on from.
        """
        mine = max((name for path in folder.iterdir() if (name := Name.parse(path.name))), default=None)
        pause_s = FIRST_PAUSE_S
        for attempt in range(FETCH_ATTEMPTS):
            try:
                return self._fetch_newer(folder, mine)
            except OutOfDisk:
                raise
            except Exception as error:
                self._tell("reading checkpoints from", error)
            if mine:
                return None
            if attempt + 1 < FETCH_ATTEMPTS:
                time.sleep(pause_s)
                pause_s *= 2
        raise StepError(
            "there is no checkpoint here, and those at the address cannot be read",
            where=hide_secrets(self._url),
            hint="mend the address, or leave checkpoint_url out to start anew",
        )

    def _fetch_newer(self, folder: Path, mine: Name | None) -> None:
        filesystem, root = self._open()
        for name in sorted(_names(filesystem, root), reverse=True):
            if mine and name <= mine:
                return
            digests = _complete(filesystem, f"{root}/{name}")
            if digests is None:
                continue
            temporary = folder / f"tmp-{name}"
            temporary.mkdir()
            try:
                with full_disk_is_told("fetching a checkpoint", folder):
                    wrong = _download(filesystem, f"{root}/{name}", digests, temporary)
                    if not wrong:
                        sync_tree(temporary)
                        temporary.rename(folder / str(name))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if not wrong:
                self._warn(f"checkpoint {name} was fetched from {hide_secrets(self._url)}")
                return
            self._warn(f"checkpoint {name} at {hide_secrets(self._url)} is damaged ({wrong}): trying the one before it")

    def _copy_in_turn(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                # Milestones, which nothing replaces, come first.
                self._copying = min(self._waiting)
                path, anchors = self._waiting.pop(self._copying)
                name = self._copying
            failed = False
            try:
                self._upload(name, path, anchors)
                pause_s = FIRST_PAUSE_S
            except Exception as error:
                failed = True
                self._tell(f"copying checkpoint {name} to", error)
            with self._changed:
                self._copying = None
                if failed and path.exists() and (not self._waiting or self._retention.is_milestone(name.step)):
                    self._waiting[name] = path, anchors
                self._changed.notify_all()
                if failed:
                    self._changed.wait_for(lambda: self._closed, pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _upload(self, name: Name, path: Path, anchors: Sequence[int]) -> None:
        filesystem, root = self._open()
        there = f"{root}/{name}"
        filesystem.makedirs(there, exist_ok=True)
        digests = {file.name: sha256_file(file) for file in sorted(path.iterdir())}
        for file, digest in digests.items():
            with (path / file).open("rb") as source, filesystem.open(f"{there}/{file}", "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            with filesystem.open(f"{there}/{file}", "rb") as copied:
                if _sha256(copied) != digest:
                    raise OSError(f"{file} does not read back as it was written")
        filesystem.pipe_file(f"{there}/{COMPLETE}", json.dumps(digests).encode())
        names = _names(filesystem, root)
        for old in names - self._retention.kept(names, anchors):
            _remove(filesystem, f"{root}/{old}")

    def _open(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        filesystem, root = url_to_fs(self._url)
        filesystem.invalidate_cache()
        return filesystem, f"{root.rstrip('/')}/{self._run}"

    def _tell(self, doing: str, error: Exception) -> None:
        # Libraries put addresses of their own making into what they raise.
        said = " ".join(map(hide_secrets, f"{type(error).__name__}: {error}".split()))
        self._warn(f"{doing} {hide_secrets(self._url)} failed: {said}")


def _names(filesystem: AbstractFileSystem, root: str) -> set[Name]:
    try:
        listed = filesystem.ls(root, detail=False)
    except FileNotFoundError:
        return set()
    texts = (str(entry).rstrip("/").rpartition("/")[2] for entry in listed)
    return {name for text in texts if (name := Name.parse(text))}


def _complete(filesystem: AbstractFileSystem, there: str) -> dict[str, str] | None:
    """The digests of a checkpoint's files; None while it is not whole."""
    try:
        digests = json.loads(filesystem.cat_file(f"{there}/{COMPLETE}"))
    except (FileNotFoundError, ValueError):
        return None
    return digests if isinstance(digests, dict) and all(Path(file).name == file for file in digests) else None


def _download(filesystem: AbstractFileSystem, there: str, digests: Mapping[str, str], folder: Path) -> str:
    """Copy a checkpoint's files here; what is wrong with them, empty when nothing is."""
    for file, digest in digests.items():
        try:
            with filesystem.open(f"{there}/{file}", "rb") as source, (folder / file).open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
        except FileNotFoundError:
            return f"{file} is missing"
        if sha256_file(folder / file) != digest:
            return f"{file} does not match its digest"
    return ""


def _remove(filesystem: AbstractFileSystem, there: str) -> None:
    if filesystem.exists(f"{there}/{COMPLETE}"):
        filesystem.rm_file(f"{there}/{COMPLETE}")
    filesystem.rm(there, recursive=True)


def _sha256(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        found.update(chunk)
    return found.hexdigest()
