"""What the training loop is given, and what it gives back: objectives, who watches, its settings and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from liuyi.train.batches import Batch
from liuyi.train.guards import GuardConfig, Jump
from liuyi.train.params import KeepParams, LoopParams
from liuyi.train.retention import Retention


class MicroBatch(Protocol):
    @property
    def packed(self) -> Batch:
        """The rows that go through the model."""

    def to(self, device: torch.device) -> Self: ...


M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=MicroBatch)


@dataclass(frozen=True)
class Loss:
    """What an objective gives for one micro-batch."""

    total: Tensor
    """Sum of the losses, a differentiable scalar."""
    count: int
    """How many tokens, or pairs, were summed over."""
    metrics: dict[str, Tensor]
    """Further sums over the same count; their means are logged."""


Objective = Callable[[M, B], Loss]


class Listener(Protocol):
    """Who is told figures."""

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...


class Observer(Listener, Protocol):
    """Who is told how training goes; a step's `Context` is one."""

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...

    def log(self, message: str) -> None: ...


class Deaf:
    """An observer that passes over what it is told."""

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None: ...


class Monitor(Protocol):
    """Looks at the model between steps and may end the run; its state is part of every checkpoint."""

    def after_step(self, model: Any, step: int) -> str:
        """Called when `step` steps are done; a reason to stop, or an empty string. Where it stops the run it may put
        other weights in place; a step that is taken twice is looked at twice."""

    def tensors(self) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    clip_norm: float = 1.0
    """Largest gradient norm, of the gradient of the mean loss."""
    checkpoint_every_s: float = 20.0
    """At 0 one is made after every step, and waited for."""
    retention: Retention = field(default_factory=Retention)
    """Which checkpoints stay."""
    checkpoint_url: str = ""
    """Where checkpoints are copied to as well, as fsspec has it; each run has a folder there, named as `workdir`."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    hang_timeout_s: float = 600.0
    """Without a micro-batch, a look of the monitor or a checkpoint done for so long, the process ends by
    `START_AGAIN`."""
    verify_every: int = 500
    """Every so many steps one is taken twice and compared; 0 for never."""
    inject: str = ""
    """Faults to meet on purpose, as `train/inject.py` has them."""

    @classmethod
    def of(cls, params: LoopParams, steps: int) -> LoopConfig:
        """What a step's parameters say of the loop."""
        keep = params if isinstance(params, KeepParams) else None
        return cls(
            steps,
            clip_norm=params.clip_norm,
            checkpoint_every_s=params.checkpoint_every_s,
            retention=Retention(keep.keep_checkpoints, keep.keep_every_steps) if keep else Retention(),
            checkpoint_url=keep.checkpoint_url if keep else "",
            hang_timeout_s=params.hang_timeout_s,
            verify_every=params.verify_every,
            inject=params.inject,
        )


@dataclass(frozen=True)
class Result:
    steps: int
    tokens: int
    """Targets learnt from, over all steps taken."""
    loss: float
    """Mean over the last steps of the log (a twentieth of them)."""
    skipped: int
    jumps: list[Jump]
    """Where rollbacks made the run pass over data."""
    recoveries: int
    """How often silent corruption sent this process back to a checkpoint."""
    stopped: str
    """Why the monitor ended the run; empty when it ran to its end."""
    figures: dict[str, float]
    """How fast it went and what memory it took, by the clock of the process that ended it."""
