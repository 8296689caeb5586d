"""Garbage: artifacts that no run and no pin needs, and folders that dead processes left behind.

Kept are the inputs and outputs of every run's work, what recipes of runs name, pins, and all of that came from.
While a run is active nothing that any finished work gave is touched, since the run may be about to find it done.
A run that begins during a collection waits for it to end, and the collection ends as soon as it sees the run.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liuyi.core.disk import folder_bytes
from liuyi.core.errors import ArtifactError, LedgerError
from liuyi.core.graph import Graph
from liuyi.core.home import Home
from liuyi.core.leases import COLLECTION
from liuyi.core.owner import is_alive, this_process
from liuyi.core.records import Execution, Run
from liuyi.core.runner.launch import ACTIVE, state
from liuyi.core.runner.lifetime import Heartbeat
from liuyi.core.runner.process import BEAT_S, LEASE_S, lease_name

_NAMED = re.compile(r"artifact:\s*([0-9a-f]{6,64})")
_FOREIGN_STAGING_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Item:
    """Something to remove: an artifact by its digest, or a folder by its path, and its size."""

    name: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What is not needed, and what is."""

    artifacts: tuple[Item, ...]
    folders: tuple[Item, ...]
    unknown: tuple[Item, ...]
    """Artifacts and work folders that the ledger has never heard of; they may belong to another ledger."""
    kept: int
    kept_bytes: int

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in (*self.artifacts, *self.folders))


def collect(home: Home, *, dry_run: bool = False, forget: Collection[str] = (), unknown: bool = False) -> Garbage:
    """Forget the runs `forget`, then remove what is not needed; with `dry_run`, only say what that would be.

    With `unknown`, what the ledger has never heard of is removed too. Raises LedgerError if a run to forget is active
    or another collection is at work.
    """
    for run_id in forget:
        run = home.ledger.run(run_id)
        if state(run) in ACTIVE:
            raise LedgerError(f"run {run.id} is still {run.status}", hint=f"stop it first: liuyi cancel {run.id}")
    if dry_run:
        return find_garbage(home, forget=forget, unknown=unknown)
    with _alone(home) as me:
        for run_id in forget:
            home.ledger.forget_run(run_id)
            shutil.rmtree(home.runs_dir / run_id, ignore_errors=True)
        found = find_garbage(home, unknown=unknown)
        active = {run.id for run in _active(home)}
        for item in found.artifacts:
            if any(run.id not in active for run in _active(home)):
                raise LedgerError("a run began meanwhile, so the rest was left", hint="run 'liuyi gc' again")
            if not home.ledger.renew(COLLECTION, me):
                raise LedgerError("another 'liuyi gc' took over, so the rest was left", hint="run 'liuyi gc' again")
            home.store.delete(item.name)
        for item in found.folders:
            shutil.rmtree(item.name, ignore_errors=True)
    return found


def find_garbage(home: Home, *, forget: Collection[str] = (), unknown: bool = False) -> Garbage:
    """What `collect` would remove."""
    # The store is listed before the ledger is read: what is published later is not in the list.
    published = {digest: home.store.published(digest) for digest in home.store.digests()}
    known = home.ledger.artifacts()
    needed = _needed(home, published, forget)
    loose = [_artifact(home, digest, known.get(digest, "")) for digest in published if digest not in needed]
    doomed = [item for item in loose if unknown or item.name in known]
    strange = [item for item in loose if not unknown and item.name not in known]
    work, strange_work = _leftover_work(home, forget)
    kept = [_artifact(home, digest, "") for digest in published if digest in needed]
    return Garbage(
        artifacts=tuple(doomed),
        folders=tuple(_leftover_staging(home) + work + (strange_work if unknown else [])),
        unknown=tuple(strange + ([] if unknown else strange_work)),
        kept=len(kept),
        kept_bytes=sum(item.bytes for item in kept),
    )


def _needed(home: Home, published: dict[str, float], forget: Collection[str]) -> set[str]:
    ledger = home.ledger
    roots = {pin.digest for pin in ledger.pins()}
    for run in ledger.runs(limit=None):
        if run.id not in forget:
            roots |= _touched(ledger.executions_of(run.id))
            roots |= _named(run, published)
    active = _active(home)
    if active:
        roots |= _touched(ledger.executions())
        oldest = min(run.created for run in active)
        roots |= {digest for digest, when in published.items() if when >= oldest - 60}
    return Graph(home).ancestors(roots)


def _touched(executions: Collection[Execution]) -> set[str]:
    taken = {digest for execution in executions for _, digest in execution.inputs}
    return taken | {digest for execution in executions for digest in execution.outputs.values()}


def _named(run: Run, published: Collection[str]) -> set[str]:
    prefixes = tuple(_NAMED.findall("\n".join([run.text, *run.overrides])))
    return {digest for digest in published if prefixes and digest.startswith(prefixes)}


def _active(home: Home) -> list[Run]:
    return [run for run in home.ledger.runs(limit=None) if run.status in ACTIVE and state(run) in ACTIVE]


def _artifact(home: Home, digest: str, kind: str) -> Item:
    try:
        manifest = home.store.manifest(digest)
    except ArtifactError:
        return Item(digest, kind or "artifact", 0)
    return Item(digest, manifest.kind, manifest.size_bytes)


def _leftover_staging(home: Home) -> list[Item]:
    """Folders that were being filled by processes that are dead; those of other hosts once they are a week old."""
    found = []
    for folder in _folders(home.store.staging):
        alive = is_alive(folder.name)
        if alive is False or (alive is None and time.time() - folder.stat().st_mtime > _FOREIGN_STAGING_S):
            found.append(Item(str(folder), "unfinished artifact", folder_bytes(folder)))
    return found


def _leftover_work(home: Home, forget: Collection[str]) -> tuple[list[Item], list[Item]]:
    """Work folders that no run can go on from, and those of work that the ledger does not know."""
    leases = home.ledger.leases()
    leftover: list[Item] = []
    strange: list[Item] = []
    for folder in _folders(home.work_root):
        key = folder.name
        steps = home.ledger.steps_with_key(key)
        open_steps = [step for step in steps if step.run_id not in forget and step.status not in ("done", "cached")]
        if lease_name(key) in leases or open_steps:
            continue
        item = Item(str(folder), "work folder", folder_bytes(folder))
        (leftover if steps or home.ledger.execution(key) else strange).append(item)
    return leftover, strange


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


@contextmanager
def _alone(home: Home) -> Iterator[str]:
    """Hold the collection's lease; gives its holder's name."""
    me = this_process()
    if not home.ledger.acquire(COLLECTION, me, LEASE_S):
        raise LedgerError("another 'liuyi gc' is at work")

    def beat() -> None:
        home.ledger.renew(COLLECTION, me)

    try:
        with Heartbeat(beat, BEAT_S):
            yield me
    finally:
        home.ledger.release(COLLECTION, me)
