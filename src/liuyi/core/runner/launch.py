"""Starting, watching, cancelling and resuming runs, from any process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from liuyi.core.disk import full_disk_is_told
from liuyi.core.errors import LedgerError, LiuyiError
from liuyi.core.home import Home
from liuyi.core.owner import is_alive
from liuyi.core.recipe import Recipe, RecipeSource, parse_recipe
from liuyi.core.records import Run
from liuyi.core.runner.events import Event, end_of_events, follow_events
from liuyi.core.runner.options import WORKER_LOG, RunOptions
from liuyi.core.runner.process import LEASE_S

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
ACTIVE = ("queued", "running")
LOOK_S = 0.5
TAKEN = 3
"""Exit status of a worker that found another one at its run."""
START_S = 30.0
"""How long a worker may take to report for its run."""


def state(run: Run) -> State:
    """How a run stands; `lost` if the ledger has it as active but its worker is gone."""
    if run.status not in ACTIVE:
        return run.status
    if not run.worker:
        return run.status if time.time() - run.created < START_S else "lost"
    alive = is_alive(run.worker)
    if alive is None:
        alive = time.time() - (run.heartbeat or run.created) < 2 * LEASE_S
    return run.status if alive else "lost"


def check_recipe(home: Home, source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe against this home. Raises InvalidRecipe with every mistake; nothing is run."""
    return parse_recipe(
        source.text,
        source.name,
        overrides=overrides,
        folder=source.folder,
        stored=lambda ref: home.store.manifest(home.store.resolve(ref)),
    )


@dataclass
class Attached:
    """A run whose events can be followed from here, and its worker if this process started it."""

    home: Home
    run_id: str
    start: int
    worker: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _looked: float = field(default=-math.inf, repr=False)
    _active: bool = field(default=True, repr=False)

    def events(self) -> Iterator[Event | None]:
        """The run's events until it ends or its worker is gone; None when there is nothing new."""
        return follow_events(self.home.run_dir(self.run_id), start=self.start, more=self.is_active)

    def is_active(self) -> bool:
        """Whether the run's worker is still at it; the ledger is asked twice a second at most."""
        if self.worker is not None:
            status = self.worker.poll()
            if status != TAKEN:
                return status is None
            self.worker = None
        if time.monotonic() - self._looked > LOOK_S:
            self._looked, self._active = time.monotonic(), state(self.run()) in ACTIVE
        return self._active

    def run(self) -> Run:
        """The run as the ledger has it now."""
        return self.home.ledger.run(self.run_id)


def start_run(home: Home, source: RecipeSource, *, overrides: Sequence[str] = (), until: str | None = None) -> Attached:
    """Check a recipe, enter a run of it and start its worker.

    Raises InvalidRecipe or RecipeError, before anything is entered, for whatever is wrong with the recipe.
    """
    recipe = check_recipe(home, source, overrides)
    recipe.until(until)
    run_id = home.ledger.create_run(
        recipe=recipe.name, text=source.text, source=source.name, overrides=list(overrides), seed=recipe.seed
    )
    RunOptions(folder=source.folder, until=until).save(home.run_dir(run_id))
    return _start_worker(home, run_id)


def resume_run(home: Home, ref: str = "last") -> Attached:
    """Go on with a run that failed, was cancelled or lost its worker; one that works, or is done, is only attached to.

    Raises LedgerError if the run is not known, or not of this machine.
    """
    run = home.ledger.run(ref)
    found = state(run)
    if found in (*ACTIVE, "done"):
        return Attached(home, run.id, start=0)
    RunOptions.load(home.run_dir(run.id))
    return _start_worker(home, run.id)


def cancel_run(home: Home, ref: str, *, wait_s: float = 20.0) -> Run:
    """Stop a run and wait until it has stopped; a run without a worker is only marked.

    Raises LedgerError if it is not active, works on another machine, or does not stop in time.
    """
    run = home.ledger.run(ref)
    found = state(run)
    if found not in (*ACTIVE, "lost"):
        raise LedgerError(f"run {run.id} is not active: it is {found}")
    if found == "lost" or not run.worker:
        home.ledger.update_run(run.id, status="cancelled", finished=time.time())
        return home.ledger.run(run.id)
    host, pid, *_ = run.worker.split(":")
    if is_alive(run.worker) is None:
        raise LedgerError(f"run {run.id} works on {host}", hint="cancel it there")
    os.kill(int(pid), signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        run = home.ledger.run(run.id)
        if state(run) not in ACTIVE:
            return run
        time.sleep(0.1)
    raise LedgerError(f"run {run.id} has not stopped after {wait_s:.0f} s", hint=f"its worker is process {pid}")


def _start_worker(home: Home, run_id: str) -> Attached:
    """Start a worker in a session of its own, so that it outlives this process and its terminal."""
    folder = home.run_dir(run_id)
    start = end_of_events(folder)
    command = [sys.executable, "-P", "-m", "liuyi.core.runner.worker", str(home.path), run_id]
    with full_disk_is_told("starting a run", folder), (folder / WORKER_LOG).open("ab") as log:
        try:
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        except OSError as error:
            raise LiuyiError(f"the worker cannot be started: {error}", where=str(folder)) from error
    return Attached(home, run_id, start, worker)
