"""Checkpoints of a run: everything that the next step depends on, in safetensors and JSON.

A checkpoint is written beside, fsynced and renamed into place by a background thread, so it is there whole or not at
all and training goes on meanwhile; the copy that it is written from is the only stand-still. Of several processes each
writes the parts that it alone holds and its share of what many hold, and the first renames when all are done; the
folder must be one that all of them see. Every file's SHA-256 is checked on load; a damaged checkpoint is passed over
for the one before it. What one process meets all of them raise, so that all decide the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from liuyi.core.digest import sha256_bytes
from liuyi.core.disk import FULL, sync
from liuyi.core.errors import OutOfDisk, StepError
from liuyi.train.background import yield_to_training
from liuyi.train.retention import Name, Retention
from liuyi.train.shards import Piece, gather_json, share_out
from liuyi.train.snapshot import Held, Snapshot, copied, held_parts
from liuyi.train.stored import Stored, damage, digests_file, state_file, tensors_file
from liuyi.train.tensor_file import write_tensors
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.train.remote import RemoteCheckpoints


LOOK_S = 1.0
"""Between looks at what the first process fetches."""


class Checkpoints:
    """The checkpoints in one folder, numbered in the order of their making.

    `warn` is told of damaged ones. All processes of `world` call every method together; `remote` is used by the first.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], None] = lambda message: None,
        *,
        world: World | None = None,
        retention: Retention | None = None,
        remote: RemoteCheckpoints | None = None,
    ) -> None:
        self.folder = folder
        self.warn = warn
        self.world = world or World()
        self.retention = retention or Retention()
        self.remote = remote if self.world.leads else None
        if self.world.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("tmp-*"):
                shutil.rmtree(leftover)
        self.world.barrier()
        # The writing threads agree among themselves, whatever the training threads are telling each other.
        self._group = None if self.world.size == 1 else torch.distributed.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._serial = 0
        self._anchors: Sequence[int] | None = None  # of the last one that was saved
        self._held: dict[str, tuple[Piece, int]] = {}
        self._writes: set[str] = set()

    def __enter__(self) -> Checkpoints:
        if self.world.size > 1:
            self._fetch_while_others_wait()
        elif self.remote:
            self.remote.fetch(self.folder)
        return self

    def _fetch_while_others_wait(self) -> None:
        """A collective lasts as long as it may and no longer, and to fetch checkpoints may take hours: so all come
        together again and again until the first process has fetched them."""
        fetching = self._pool.submit(self.remote.fetch, self.folder) if self.remote else None
        while self.world.any(fetching is not None and not wait([fetching], LOOK_S).done):
            pass
        if fetching:
            fetching.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            # What ended the run is told, rather than what failed besides.
            if kind is None:
                raise
        finally:
            self._pool.shutdown()
            if self.remote:
                self.remote.close(failed=kind is not None)
        if kind is None and self.remote and self._anchors is not None:
            # One that was being copied when the others were removed is not needed any more.
            self._prune(self._anchors)

    def save(self, snapshot: Snapshot, *, anchors: Sequence[int] = (), log: Path | None = None) -> None:
        """Copy the snapshot now and write it in the background, once the write before it has ended.

        What stays of the others is said by the retention, and for each step of `anchors` the newest one at or before it
        does. The leading process's `log`, which may grow meanwhile, is kept with it as it is now.
        """
        self.wait()
        pieces, copies = self._copy(snapshot)
        serials = [name.serial for name in self._agreed_names()]
        self._serial = max([self._serial, *serials], default=0) + 1
        self._anchors = anchors
        name = Name(self._serial, snapshot.step)
        state = {
            "step": snapshot.step,
            "writers": self.world.size,
            "layout": asdict(self.world.layout),
            "pieces": {name: piece.to_json() for name, piece in pieces.items()},
            "state": deepcopy(snapshot.state) if self.world.leads else {},
            "own": deepcopy(snapshot.own),
        }
        written = (log, log.stat().st_size) if log and self.world.leads else None
        self._pending = self._pool.submit(self._write, name, copies, state, written, anchors)

    def hold(self, snapshot: Snapshot) -> Held:
        """A copy of the snapshot in the host's memory."""
        parts = held_parts(snapshot)
        copies = copied({name: local for name, (_, local) in parts.items()})
        held = {name: (piece, copies[name]) for name, (piece, _) in parts.items()}
        return Held(snapshot.step, held, deepcopy(snapshot.state), deepcopy(snapshot.own))

    def busy(self) -> bool:
        """Whether a write is under way anywhere."""
        return self.world.any(self._pending is not None and not self._pending.done())

    def wait(self) -> bool:
        """Wait for the write under way, if there is one; raises what it met (OutOfDisk, StepError, OSError)."""
        if self._pending is None:
            return False
        pending, self._pending = self._pending, None
        pending.result()
        return True

    def load(self, at_most: int | None = None) -> Stored | None:
        """The newest undamaged checkpoint, of those at or before step `at_most` when it is given."""
        self.wait()
        self.world.barrier()
        for name in reversed(self._agreed_names()):
            if at_most is not None and name.step > at_most:
                continue
            problem = damage(self._path(name), self.world.rank, self.world.size)
            if not self.world.any(bool(problem)):
                return Stored(self._path(name), asdict(self.world.layout), self.world.rank)
            problem = problem or "another process found it"
            self.warn(f"checkpoint {name} is damaged ({problem}): passing to the one before it")
            self._remove([name])
        return None

    def forget(self, stored: Stored) -> None:
        """Remove a checkpoint that `load` has given, of which the caller has found out more than it can know."""
        self.wait()
        self._remove([stored.name], there=True)

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, which a rollback has made untrue."""
        self.wait()
        self._remove([name for name in self._agreed_names() if name.step > step], there=True)

    def _path(self, name: Name) -> Path:
        return self.folder / str(name)

    def _names(self) -> list[Name]:
        return sorted(name for path in self.folder.iterdir() if (name := Name.parse(path.name)))

    def _agreed_names(self) -> list[Name]:
        """The names that the first process sees: a folder on the network may show others something older."""
        names = self._names()
        return names if self._group is None else [Name(*name) for name in gather_json(names, self._group)[0]]

    def _remove(self, names: Sequence[Name], *, there: bool = False) -> None:
        """Remove checkpoints here, and `there` too, behind the address."""
        self.world.barrier()
        if self.world.leads:
            for name in names:
                self._discard(name)
        if self.remote and there:
            self.remote.forget(names)
        self.world.barrier()

    def _discard(self, name: Name) -> None:
        # First it loses its name: who is stopped in between leaves no half of a checkpoint.
        doomed = self.folder / f"tmp-{name}"
        self._path(name).rename(doomed)
        shutil.rmtree(doomed)

    def _copy(self, snapshot: Snapshot) -> tuple[dict[str, Piece], dict[str, Tensor]]:
        """This process's share of the snapshot. The memory of the copies is training's own again once they are
        written, and has its pages already when the next ones are made."""
        parts = held_parts(snapshot)
        self._agree_on_shares({name: (piece, local.nbytes) for name, (piece, local) in parts.items()})
        mine = {name: parts[name] for name in parts if name in self._writes}
        copies = copied({name: local for name, (_, local) in mine.items()})
        return {name: piece for name, (piece, _) in mine.items()}, copies

    def _agree_on_shares(self, held: dict[str, tuple[Piece, int]]) -> None:
        """Who writes what, decided anew when what is held has changed: the optimiser's state appears after a step."""
        if self._group is None:
            self._writes = set(held)
        elif self.world.any(held != self._held):
            told = {name: [piece.to_json(), size] for name, (piece, size) in held.items()}
            everyone = [
                {name: (Piece.from_json(piece), size) for name, (piece, size) in one.items()}
                for one in gather_json(told, self._group)
            ]
            self._held, self._writes = held, share_out(everyone)[self.world.rank]

    def _write(
        self,
        name: Name,
        tensors: dict[str, Tensor],
        state: Mapping[str, Any],
        log: tuple[Path, int] | None,
        anchors: Sequence[int],
    ) -> None:
        """Write what `save` has copied, and empty `tensors`: whoever waits for this finds their memory free."""
        temporary = self.folder / f"tmp-{name}"
        yield_to_training()

        def write() -> None:
            try:
                temporary.mkdir(exist_ok=True)
                _write_part(temporary, self.world.rank, tensors, state, log)
            finally:
                tensors.clear()

        def commit() -> None:
            sync(temporary)
            temporary.rename(self._path(name))
            sync(self.folder)
            self._prune(anchors)

        try:
            self._together(write)
            self._together(commit if self.world.leads else lambda: None)
        except BaseException as error:
            if self.world.leads:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise OutOfDisk("no space is left for a checkpoint", where=str(self.folder)) from error
            raise
        if self.remote:
            self.remote.offer(self._path(name), anchors)

    def _together(self, act: Callable[[], None]) -> None:
        """Act, and wait for the others' writing threads to have done so; raises where any of them failed."""
        met: Exception | None = None
        try:
            act()
        except Exception as error:
            met = error
        told = "" if met is None else f"{type(met).__name__}: {met}"
        reasons = [told] if self._group is None else gather_json(told, self._group)
        if met:
            raise met
        for rank, reason in enumerate(reasons):
            if reason:
                raise StepError(
                    f"rank {rank} could not write its part of a checkpoint: {reason}", where=str(self.folder)
                )

    def _prune(self, anchors: Sequence[int]) -> None:
        names = self._names()
        kept = self.retention.kept(names, anchors) | (self.remote.wanted() if self.remote else set())
        for name in names:
            if name not in kept:
                self._discard(name)


def _write_part(
    folder: Path, rank: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], log: tuple[Path, int] | None
) -> None:
    files = {tensors_file(rank): write_tensors(tensors, folder / tensors_file(rank))}
    files[state_file(rank)] = _write_file(folder / state_file(rank), json.dumps(state).encode())
    if log:
        path, size = log
        with path.open("rb") as source:
            files[path.name] = _write_file(folder / path.name, source.read(size))
    _write_file(folder / digests_file(rank), json.dumps(files).encode())


def _write_file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    sync(path)
    return sha256_bytes(data)
