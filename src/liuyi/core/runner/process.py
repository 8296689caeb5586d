"""The step process: does the work of one step key, alone in the world by its lease, and publishes what came of it."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from liuyi.core.artifact import InputRef
from liuyi.core.errors import LiuyiError
from liuyi.core.home import Home
from liuyi.core.ledger import Ledger
from liuyi.core.owner import this_process
from liuyi.core.runner.context import StepContext
from liuyi.core.runner.events import EventLog
from liuyi.core.runner.failure import as_error, pack
from liuyi.core.runner.keys import derived_seed
from liuyi.core.runner.lifetime import Heartbeat
from liuyi.core.step import Params, Staging, Step, get_step

BEAT_S = 2.0
LEASE_S = 30.0

DONE, FAILED, BUSY, CANCELLED = 0, 1, 2, 3
"""How a step process ends: the work is published; it failed; another process does it or has done it; it was stopped."""


class StepOrder(BaseModel):
    """All that a step process is told."""

    model_config = ConfigDict(frozen=True)
    home: Path
    run_id: str
    name: str
    step: str
    key: str
    params: dict[str, Any]
    inputs: tuple[tuple[str, str], ...]
    seed: int
    device: str
    log: Path

    def digests(self) -> dict[str, list[str]]:
        """The digests at each input port, in the recipe's order."""
        ports: dict[str, list[str]] = {}
        for port, digest in self.inputs:
            ports.setdefault(port, []).append(digest)
        return ports


def lease_name(key: str) -> str:
    """The lease that whoever works on a step key holds."""
    return f"step:{key}"


def run_step(order: StepOrder) -> tuple[int, dict[str, Any]]:
    """Do the work of one step in this process. Gives the exit status, and the packed error where it failed."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    try:
        return _run_alone(order), {}
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else FAILED
        return (status, {}) if status == CANCELLED else (FAILED, pack(as_error(stopped, order.log)))
    except BaseException as error:
        if not isinstance(error, LiuyiError):
            traceback.print_exc()
        return FAILED, pack(as_error(error, order.log))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(CANCELLED)


def _run_alone(order: StepOrder) -> int:
    home = Home(order.home)
    ledger = home.ledger
    owner, lease = f"{this_process()}:{order.run_id}", lease_name(order.key)
    if not ledger.acquire(lease, owner, LEASE_S):
        return BUSY
    figures = _Figures(ledger, order)
    try:
        if finished_outputs(home, get_step(order.step), order.key) is not None:
            return BUSY

        def beat() -> None:
            figures.flush()
            if not ledger.renew(lease, owner):
                print("another process has taken this step over", file=sys.stderr, flush=True)
                os._exit(BUSY)

        with Heartbeat(beat, BEAT_S):
            _work(home, order, figures)
    finally:
        try:
            figures.flush()
        finally:
            ledger.release(lease, owner)
    return DONE


def finished_outputs(home: Home, step: Step, key: str) -> dict[str, str] | None:
    """The outputs of a step key, by port, if the work was done and the store still holds all of them."""
    execution = home.ledger.execution(key)
    if execution is None or not step.always <= set(execution.outputs) <= set(step.outputs):
        return None
    return execution.outputs if all(home.store.has(digest) for digest in execution.outputs.values()) else None


def _work(home: Home, order: StepOrder, figures: _Figures) -> None:
    step = get_step(order.step)
    started = time.monotonic()
    context = StepContext(
        step=step,
        name=order.name,
        run_id=order.run_id,
        seed=derived_seed(order.seed, step),
        workdir=home.work_dir(order.key),
        inputs=order.digests(),
        store=home.store,
        events=EventLog(home.run_dir(order.run_id)),
        record=figures.add,
    )
    seed_everything(context.seed, step)
    try:
        params = step.params.model_validate(order.params)
        step.run(context, params)
        _publish(home, order, step, params, context.finished(), started)
    finally:
        context.discard()
    shutil.rmtree(context.workdir, ignore_errors=True)


def seed_everything(seed: int, step: Step) -> None:
    """Seed the random numbers of Python, numpy, and of torch where the step's module says that it uses it."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if "torch" in preloads(step):
        import torch

        torch.manual_seed(seed)


def preloads(step: Step) -> tuple[str, ...]:
    """What the step's module asks to have imported before its steps are forked, in its tuple `PRELOAD`."""
    return tuple(getattr(sys.modules[step.run.__module__], "PRELOAD", ()))


def _publish(
    home: Home, order: StepOrder, step: Step, params: Params, stagings: Mapping[str, Staging], started: float
) -> None:
    inputs = [InputRef(name=port, digest=digest) for port, digest in order.inputs]
    outputs = {}
    for name, staging in stagings.items():
        artifact = home.store.publish(
            staging, step=step.name, step_key=order.key, output=name, inputs=inputs, params=order.params
        )
        home.ledger.record_artifact(artifact.manifest)
        outputs[name] = artifact.digest
    home.ledger.record_execution(
        key=order.key,
        step=step.name,
        version=step.version,
        params=params.model_dump(mode="json"),
        seed=order.seed,
        device=order.device,
        inputs=order.inputs,
        outputs=outputs,
        seconds=time.monotonic() - started,
        run_id=order.run_id,
    )


class _Figures:
    """Metrics on their way to the ledger, entered in batches."""

    def __init__(self, ledger: Ledger, order: StepOrder) -> None:
        self._ledger, self._order = ledger, order
        self._rows: list[tuple[str, int | None, float]] = []
        self._lock = threading.Lock()

    def add(self, name: str, index: int | None, value: float) -> None:
        with self._lock:
            self._rows.append((name, index, value))

    def flush(self) -> None:
        """Enter what there is. What cannot be entered now stays for the next time."""
        with self._lock:
            rows = list(self._rows)
        self._ledger.add_metrics(self._order.run_id, self._order.name, rows)
        with self._lock:
            del self._rows[: len(rows)]
