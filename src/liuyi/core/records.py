"""What the ledger hands out: plain frozen values, never rows of an open database session.

Times are seconds since the epoch (UTC), durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

RunStatus = Literal["queued", "running", "done", "failed", "cancelled"]
StepStatus = Literal["waiting", "running", "cached", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Run:
    """One run of a recipe, and the worker process that it belongs to (`host:pid:starttime`)."""

    id: str
    recipe: str
    text: str
    source: str
    overrides: tuple[str, ...]
    seed: int
    status: RunStatus
    error: str
    worker: str
    created: float
    heartbeat: float | None
    finished: float | None


@dataclass(frozen=True)
class RunStep:
    """One step of one run; `key` is empty until its inputs are known."""

    run_id: str
    name: str
    step: str
    key: str
    status: StepStatus
    error: str
    seconds: float | None
    position: int


@dataclass(frozen=True)
class Execution:
    """Finished work: what a step key stands for, what it took and what it gave."""

    key: str
    step: str
    version: int
    params: dict[str, Any]
    seed: int
    device: str
    inputs: tuple[tuple[str, str], ...]
    """(port, digest) in the recipe's order; a port that takes several artifacts occurs several times."""
    outputs: dict[str, str]
    seconds: float
    run_id: str
    """The run that did the work; empty where it came from elsewhere."""
    created: float


@dataclass(frozen=True)
class Pin:
    """An artifact that is kept whatever happens, and why."""

    digest: str
    note: str
    created: float


@dataclass(frozen=True)
class Metric:
    """One recorded figure; `index` is the training step where it belongs to a curve."""

    run_id: str
    step_name: str
    name: str
    index: int | None
    value: float
    created: float


@dataclass(frozen=True)
class Verdict:
    """What a gate decided, with the paired difference that it decided on."""

    run_id: str
    step_name: str
    digest: str
    stage: str
    decision: str
    metric: str
    delta: float
    low: float
    high: float
    p_value: float | None
    created: float


@dataclass(frozen=True)
class Answer:
    """An answer that was served: which model and application gave it."""

    id: str
    model_digest: str
    app_digest: str | None
    request_digest: str
    detail: dict[str, Any]
    created: float
