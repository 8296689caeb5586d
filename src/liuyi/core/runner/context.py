"""What a step may use while it runs: its inputs, its outputs, and ways to say how it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from liuyi.core.artifact import Artifact, Kind
from liuyi.core.errors import StepError, did_you_mean
from liuyi.core.runner.events import EventLog
from liuyi.core.step import Staging, Step

PROGRESS_S = 0.2
"""How far apart progress events are at first; in long steps they come once a second."""


class Shelf(Protocol):
    """Where inputs come from and outputs are filled; a `Store` is one."""

    def open(self, digest: str) -> Artifact: ...

    def stage(self, kind: Kind) -> Staging: ...

    def discard(self, staging: Staging) -> None: ...


class StepContext:
    """The `Context` of a step that runs in this process."""

    def __init__(
        self,
        *,
        step: Step,
        name: str,
        run_id: str,
        seed: int,
        workdir: Path,
        inputs: Mapping[str, Sequence[str]],
        store: Shelf,
        events: EventLog,
        record: Callable[[str, int | None, float], None],
    ) -> None:
        self.name, self.run_id, self.seed, self.workdir = name, run_id, seed, workdir
        self.step, self._store, self._events, self._record = step, store, events, record
        self._digests = inputs
        self._opened: dict[str, Artifact] = {}
        self._stagings: dict[str, Staging] = {}
        self._written: set[str] = set()
        self._started = time.monotonic()
        self._next_progress = 0.0

    def input(self, name: str) -> Artifact:
        found = self.inputs(name)
        if len(found) != 1:
            raise StepError(f"input '{name}' holds {len(found)} artifacts, not one", where=self.step.name)
        return found[0]

    def inputs(self, name: str) -> list[Artifact]:
        return [self._open(digest) for digest in self._port(name)]

    def has(self, name: str) -> bool:
        return bool(self._port(name))

    @contextmanager
    def output(self, name: str) -> Iterator[Staging]:
        if name not in self.step.outputs:
            hint = did_you_mean(name, self.step.outputs)
            raise StepError(f"{self.step.name} has no output '{name}'", hint=hint)
        if name in self._stagings:
            raise StepError(f"output '{name}' is written twice", where=self.step.name)
        staging = self._store.stage(self.step.outputs[name].kind)
        self._stagings[name] = staging
        yield staging
        for metric, value in staging.metrics.items():
            if not math.isfinite(value):
                raise StepError(f"metric '{metric}' of output '{name}' is {value}", where=self.step.name)
            self._record(f"{name}.{metric}", None, float(value))
        self._written.add(name)

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        now = time.monotonic()
        if now < self._next_progress and done < total:
            return
        self._next_progress = now + (PROGRESS_S if now - self._started < 60 else 1.0)
        figures = {key: float(value) for key, value in shown.items()}
        self._events.emit("progress", step=self.name, done=float(done), total=float(total), unit=unit, shown=figures)

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        number = float(value)
        self._events.emit("metric", step=self.name, name=name, value=number, index=index)
        if math.isfinite(number):
            self._record(name, index, number)

    def log(self, message: str) -> None:
        print(message, flush=True)
        self._events.emit("log", step=self.name, text=message)

    def finished(self) -> dict[str, Staging]:
        """The written outputs. Raises StepError unless every one that the step always gives is there."""
        for name in sorted(self.step.always):
            if name not in self._written:
                raise StepError(f"output '{name}' was not written", where=self.step.name)
        if not self._written:
            raise StepError("no output was written", where=self.step.name)
        return {name: self._stagings[name] for name in self._stagings if name in self._written}

    def discard(self) -> None:
        """Remove what was written and will not be published."""
        for staging in self._stagings.values():
            self._store.discard(staging)

    def _port(self, name: str) -> Sequence[str]:
        if name not in self.step.inputs:
            raise StepError(f"{self.step.name} has no input '{name}'", hint=did_you_mean(name, self.step.inputs))
        return self._digests.get(name, ())

    def _open(self, digest: str) -> Artifact:
        if digest not in self._opened:
            self._opened[digest] = self._store.open(digest)
        return self._opened[digest]
