"""Copies of checkpoints behind an fsspec address, for the day that the machine and its disk are gone.

Checkpoints are written to the local folder and copied from there by a thread of its own, so an address that is slow or
down never holds up training: that is told, and tried again with the newest checkpoint there is by then. Every file is
read back and compared with its digest; a list of the files and their digests comes last, and a checkpoint without it
is not there. A run that starts where the address holds a newer checkpoint than its own folder first fetches all that it
does not have: what a rollback may go to and the milestones are among them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from liuyi.core.disk import full_disk_is_told, sync_tree
from liuyi.core.errors import OutOfDisk, StepError
from liuyi.core.secrets import hide_secrets_in
from liuyi.train.background import yield_to_training
from liuyi.train.retention import Name, Retention
from liuyi.train.stored import damage, recorded_digests

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

COMPLETE = "complete.json"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""Between attempts; each pause is twice the one before it."""
FETCH_ATTEMPTS = 5
PATIENCE_S = 60.0
"""How long the end of a run waits for copies under way in which nothing moves."""
_CHUNK_BYTES = 8 << 20
_FILE = re.compile(r"\w[\w.-]*", re.ASCII)


class _Damaged(Exception):
    """What lies on this machine's disk is not what was written."""


class RemoteCheckpoints:
    """The copies of one run's checkpoints, in the folder `run` below `url`; `warn` is told what goes wrong."""

    def __init__(self, url: str, run: str, retention: Retention, warn: Callable[[str], None]) -> None:
        self._url, self._run = url, run
        self._shown = hide_secrets_in(url)
        self._retention = retention
        self._warn = warn
        self._waiting: dict[Name, tuple[Path, Sequence[int] | None]] = {}
        self._forgotten: set[Name] = set()
        self._copying: Name | None = None
        self._moved = 0.0
        """When bytes last moved."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, url: str, run: str, retention: Retention, warn: Callable[[str], None]) -> RemoteCheckpoints | None:
        """None where there is no address."""
        return cls(url, run, retention, warn) if url else None

    def __repr__(self) -> str:
        return f"RemoteCheckpoints({self._shown})"

    def offer(self, path: Path, anchors: Sequence[int] | None = ()) -> None:
        """Have a checkpoint copied in its turn; one that still waits is passed over for it, if it is no milestone.

        Then what the retention does not keep is removed there; nothing is where `anchors` is None.
        """
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
            self._warn(f"checkpoint {other} is not copied to {self._shown}: {name} came before its turn")

    def forget(self, names: Collection[Name]) -> None:
        """Remove the copies of checkpoints that have turned out to be untrue, with the next one that is copied."""
        with self._changed:
            self._forgotten.update(names)
            for name in names:
                self._waiting.pop(name, None)

    def wanted(self) -> set[Name]:
        """The checkpoints that must stay on the disk because they wait to be copied."""
        with self._changed:
            return {*self._waiting, *([self._copying] if self._copying else [])}

    def close(self, *, failed: bool = False) -> None:
        """Wait for copies under way as long as bytes move; where the run has `failed`, for `PATIENCE_S` at most."""
        started = self._moved = time.monotonic()
        with self._changed:
            while not (done := not self._waiting and self._copying is None):
                left_s = (started if failed else self._moved) + PATIENCE_S - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._closed = True
            self._changed.notify_all()
        if not done:
            self._warn(f"the last checkpoints are not copied to {self._shown} yet, and will not be")

    def fetch(self, folder: Path) -> None:
        """Bring the whole checkpoints here that `folder` does not have, if one of them is newer than those it has.

        Raises StepError if the address cannot be read and `folder` has none to go on from, or it is no address that
        can be.
        """
        mine = _newest(folder)
        pause_s = FIRST_PAUSE_S
        for attempt in range(FETCH_ATTEMPTS):
            try:
                return self._fetch_newer(folder, mine)
            except (OutOfDisk, StepError):
                raise
            except Exception as error:
                said = self._tell("reading checkpoints from", error)
            if mine:
                return None
            if attempt + 1 < FETCH_ATTEMPTS:
                time.sleep(pause_s)
                pause_s *= 2
        raise StepError(
            f"there is no checkpoint here, and those at the address cannot be read: {said}",
            where=self._shown,
            hint="mend the address, or leave checkpoint_url out to start anew",
        )

    def _fetch_newer(self, folder: Path, mine: Name | None) -> None:
        filesystem, root = self._open()
        whole = _whole(filesystem, root)
        if whole and (mine is None or max(whole) > mine):
            # The newest comes last: who is stopped in between sees that there is a newer one.
            for name in sorted(whole):
                if not (folder / str(name)).exists():
                    self._fetch_one(filesystem, f"{root}/{name}", whole[name], folder, name)
        for path in sorted(folder.iterdir()):
            name_here = Name.parse(path.name)
            if name_here and name_here not in whole and self._retention.is_milestone(name_here.step):
                self.offer(path, None)

    def _fetch_one(
        self, filesystem: AbstractFileSystem, there: str, digests: Mapping[str, str], folder: Path, name: Name
    ) -> None:
        temporary = folder / f"tmp-{name}"
        temporary.mkdir()
        try:
            with full_disk_is_told("fetching a checkpoint", folder):
                wrong = _download(filesystem, there, digests, temporary) or damage(temporary)
                if wrong:
                    self._warn(f"checkpoint {name} at {self._shown} is damaged ({wrong}): going on without it")
                    return
                sync_tree(temporary)
                temporary.rename(folder / str(name))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._warn(f"checkpoint {name} was fetched from {self._shown}")

    def _copy_in_turn(self) -> None:
        yield_to_training()
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
            except _Damaged as found:
                self._warn(f"checkpoint {name} is not copied to {self._shown}: {found}")
            except Exception as error:
                # One that was removed meanwhile is not missed.
                failed = path.exists() and not self._closed
                if failed:
                    self._tell(f"copying checkpoint {name} to", error)
            with self._changed:
                self._copying = None
                if failed and (not self._waiting or self._retention.is_milestone(name.step)):
                    self._waiting[name] = path, anchors
                self._changed.notify_all()
                if failed:
                    self._changed.wait_for(lambda: self._closed, pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _upload(self, name: Name, path: Path, anchors: Sequence[int] | None) -> None:
        filesystem, root = self._open()
        there = f"{root}/{name}"
        filesystem.makedirs(there, exist_ok=True)
        recorded, digests = recorded_digests(path), {}
        for file in sorted(each.name for each in path.iterdir()):
            with (path / file).open("rb") as source, filesystem.open(f"{there}/{file}", "wb") as target:
                digests[file] = self._copy(source, target)
            if digests[file] != recorded.get(file, digests[file]):
                raise _Damaged(f"{file} does not match its digest")
            with filesystem.open(f"{there}/{file}", "rb") as copied:
                if self._copy(copied) != digests[file]:
                    raise OSError(f"{file} does not read back as it was written")
        filesystem.pipe_file(f"{there}/{COMPLETE}", json.dumps(digests).encode())
        if anchors is not None:
            self._prune(filesystem, root, anchors)

    def _prune(self, filesystem: AbstractFileSystem, root: str, anchors: Sequence[int]) -> None:
        """Remove what is not kept, and what never became whole, which counts for nothing."""
        with self._changed:
            forgotten = set(self._forgotten)
        kept = self._retention.kept(_whole(filesystem, root).keys() - forgotten, anchors)
        for old in _names(filesystem, root) - kept:
            _remove(filesystem, f"{root}/{old}")

    def _copy(self, source: BinaryIO, target: BinaryIO | None = None) -> str:
        """Copy, or only read, a file; its SHA-256."""
        found = hashlib.sha256()
        for chunk in _chunks(source):
            found.update(chunk)
            if target:
                target.write(chunk)
            self._moved = time.monotonic()
        return found.hexdigest()

    def _open(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        try:
            filesystem, root = url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise StepError(
                f"there is no way to this address: {hide_secrets_in(str(error))}",
                where=self._shown,
                hint="fsspec names what has to be installed for which protocol",
            ) from None
        filesystem.invalidate_cache()
        return filesystem, f"{root.rstrip('/')}/{self._run}"

    def _tell(self, doing: str, error: Exception) -> str:
        # Libraries put addresses of their own making into what they raise.
        said = hide_secrets_in(" ".join(f"{type(error).__name__}: {error}".split()))
        self._warn(f"{doing} {self._shown} failed: {said}")
        return said


def _newest(folder: Path) -> Name | None:
    return max((name for path in folder.iterdir() if (name := Name.parse(path.name))), default=None)


def _names(filesystem: AbstractFileSystem, root: str) -> set[Name]:
    try:
        listed = filesystem.ls(root, detail=False)
    except FileNotFoundError:
        return set()
    texts = (str(entry).rstrip("/").rpartition("/")[2] for entry in listed)
    return {name for text in texts if (name := Name.parse(text))}


def _whole(filesystem: AbstractFileSystem, root: str) -> dict[Name, dict[str, str]]:
    """The checkpoints that are there, and the digests of their files."""
    found = ((name, _complete(filesystem, f"{root}/{name}")) for name in _names(filesystem, root))
    return {name: digests for name, digests in found if digests is not None}


def _complete(filesystem: AbstractFileSystem, there: str) -> dict[str, str] | None:
    """The digests of a checkpoint's files; None while it is not whole."""
    try:
        digests = json.loads(filesystem.cat_file(f"{there}/{COMPLETE}"))
    except (FileNotFoundError, ValueError):
        return None
    return digests if isinstance(digests, dict) and all(map(_FILE.fullmatch, digests)) else None


def _download(filesystem: AbstractFileSystem, there: str, digests: Mapping[str, str], folder: Path) -> str:
    """Copy a checkpoint's files here; what is wrong with them, empty when nothing is."""
    for file, digest in digests.items():
        found = hashlib.sha256()
        try:
            with filesystem.open(f"{there}/{file}", "rb") as source, (folder / file).open("wb") as target:
                for chunk in _chunks(source):
                    found.update(chunk)
                    target.write(chunk)
        except FileNotFoundError:
            return f"{file} is missing"
        if found.hexdigest() != digest:
            return f"{file} does not match its digest"
    return ""


def _remove(filesystem: AbstractFileSystem, there: str) -> None:
    if filesystem.exists(f"{there}/{COMPLETE}"):
        filesystem.rm_file(f"{there}/{COMPLETE}")
    filesystem.rm(there, recursive=True)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
