"""A run's checkpoints as its loop makes them: one that cannot be written costs time, and not at once the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from liuyi.core.errors import LiuyiError
from liuyi.train.checkpoint import Checkpoints
from liuyi.train.interfaces import Observer
from liuyi.train.snapshot import Snapshot
from liuyi.train.watchdog import Watchdog

MAX_FAILED_SAVES = 3
"""Checkpoints in a row that could not be written before the run fails."""


class Saver:
    """Saves snapshots of one run, the log with each. `always_wait` has each written before training goes on."""

    def __init__(
        self, checkpoints: Checkpoints, log: Path, observer: Observer, watchdog: Watchdog, *, always_wait: bool
    ) -> None:
        self._checkpoints, self._log = checkpoints, log
        self._observer, self._watchdog = observer, watchdog
        self._always_wait = always_wait
        self._failed = 0

    def save(self, snapshot: Snapshot, anchors: Sequence[int], *, must: bool, wait: bool = False) -> None:
        """Write a checkpoint in the background, unless the last one is still being written and not waited for.

        One that cannot be written is told, and the next is tried in its turn. When several in a row fail, or this one
        does and there `must` be one, the run fails with what was met. `anchors` are as for `Checkpoints.save`.
        """
        step = snapshot.step
        if not (must or wait) and self._checkpoints.busy():
            self._observer.log(f"step {step}: the checkpoint before is still being written; none is made now")
            return
        self._watchdog.beat(f"the checkpoint of step {step}")
        self.settle(step)
        started = time.monotonic()
        self._checkpoints.save(snapshot, anchors=anchors, log=self._log)
        self._observer.metric("checkpoint_stall_s", time.monotonic() - started, step)
        if must or self._always_wait:
            self._watchdog.beat(f"the checkpoint of step {step}")
            self.settle(step, must=must)

    def settle(self, step: int, *, must: bool = False) -> None:
        """Wait for the write under way, and see how it went."""
        try:
            if self._checkpoints.wait():
                self._failed = 0
        except (LiuyiError, OSError) as error:
            self._failed += 1
            if must or self._failed >= MAX_FAILED_SAVES:
                raise
            self._observer.log(f"step {step}: goes on without a checkpoint: {error}")
