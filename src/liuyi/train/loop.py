"""The training loop: pretraining, fine-tuning and preference objectives differ only in their batches and objective.

An objective gives the *sum* of its losses over a micro-batch and the number of tokens (or pairs) it summed over; the
gradient is divided once by the count of the whole global batch, so eight micro-batches of one row train as one of
eight. The state before every step is a pure function of the start, the seed and the step: where checkpoints fell and
how often the run was killed changes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from liuyi.core.errors import DataError, StepError
from liuyi.train.checkpoint import Checkpoints, Snapshot, fsync, load_rng_state, rng_state
from liuyi.train.guards import Guard, GuardConfig, Jump, Reason
from liuyi.train.optim import Optimiser
from liuyi.train.schedule import Schedule

LOG_FILE = "training.jsonl"


class MicroBatch(Protocol):
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


class Observer(Protocol):
    """Who is told how training goes; a step's `Context` is one."""

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None: ...


class Monitor(Protocol):
    """Looks at the model between steps and may end the run; its state is part of every checkpoint."""

    def after_step(self, model: Any, step: int) -> str:
        """Called when `step` steps are done; a reason to stop, or an empty string."""

    def tensors(self) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    clip_norm: float = 1.0
    """Largest gradient norm, of the gradient of the mean loss."""
    checkpoint_every_s: float = 20.0
    guard: GuardConfig = field(default_factory=GuardConfig)


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
    stopped: str
    """Why the monitor ended the run; empty when it ran to its end."""


class Trainer(Generic[M, B]):
    """One run in `workdir`: starts, or goes on where the last checkpoint there stands.

    `batches(index)` gives global batch `index` as micro-batches, `schedule(step)` the learning rates' factor;
    `prepare` sets up the weights of a run that starts, and is not called when one goes on.
    Raises DataError for a batch without a target and StepError when rollbacks do not help.
    """

    def __init__(
        self,
        model: M,
        batches: Callable[[int], Sequence[B]],
        objective: Objective[M, B],
        optimiser: Optimiser,
        schedule: Schedule,
        *,
        config: LoopConfig,
        workdir: Path,
        observer: Observer,
        monitor: Monitor | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.objective = objective
        self.optimiser = optimiser
        self.schedule = schedule
        self.config = config
        self.observer = observer
        self.monitor = monitor
        self.prepare = prepare
        self.device = next(model.parameters()).device
        self.guard = Guard(config.guard)
        self.step = 0
        self.tokens = 0
        self.stopped = ""
        workdir.mkdir(parents=True, exist_ok=True)
        self.log_path = workdir / LOG_FILE
        self.checkpoints = Checkpoints(workdir / "checkpoints", observer.log)

    def run(self) -> Result:
        """Train to the last step, or until the monitor ends it; the model then holds the final weights."""
        self.model.train()
        with self.checkpoints:
            found = self.checkpoints.load()
            if found:
                self._restore(found)
                self.observer.log(f"resumed at step {self.step} of {self.config.steps}")
            else:
                self.prepare()
                self.log_path.write_bytes(b"")
                self._save()
            started, first, saved = time.monotonic(), self.tokens, time.monotonic()
            while not self._over:
                loss = self._take_step()
                now = time.monotonic()
                speed = (self.tokens - first) / max(now - started, 1e-9)
                self.observer.progress(self.step, self.config.steps, "steps", loss=loss, tok_s=speed)
                if now - saved >= self.config.checkpoint_every_s or self._over:
                    self._save()
                    saved = now
        return self._result()

    @property
    def _over(self) -> bool:
        return self.step >= self.config.steps or bool(self.stopped)

    def _take_step(self) -> float:
        """Do one step, or skip it, or roll back; the mean loss that was seen."""
        index = self.guard.batch_index(self.step)
        factor = self.schedule(self.step)
        loss, count, metrics = self._accumulate(index)
        if not count:
            raise DataError(f"batch {index} has no token to learn from", hint="look at how its rows were made")
        grad_norm = self._clip(count)
        decision, reason = self.guard.judge(loss, grad_norm)
        row: dict[str, Any] = {
            "step": self.step,
            "loss": loss,
            "lr": factor * self.optimiser.config.lr,
            "grad_norm": grad_norm,
            **metrics,
        }
        if decision == "step":
            self.optimiser.step(factor)
            self.tokens += count
        else:
            row["skipped"] = reason
            self.observer.log(f"step {self.step}: {reason} loss {loss:.4g}, gradient norm {grad_norm:.4g}: skipped")
        self.optimiser.zero_grad()
        self._write_log(row)
        if decision == "rollback":
            self._roll_back(reason)
            return loss
        self.step += 1
        if self.monitor:
            self.stopped = self.monitor.after_step(self.model, self.step)
            if self.stopped:
                self.observer.log(f"stopped after step {self.step}: {self.stopped}")
        return loss

    def _accumulate(self, index: int) -> tuple[float, int, dict[str, float]]:
        """Forward and backward of every micro-batch: mean loss, count and mean metrics of the global batch."""
        total, count = 0.0, 0
        sums: dict[str, float] = {}
        for batch in self.batches(index):
            loss = self.objective(self.model, batch.to(self.device))
            if loss.count:
                loss.total.backward()  # type: ignore[no-untyped-call]
            total += loss.total.item()
            count += loss.count
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return total / max(count, 1), count, {name: value / max(count, 1) for name, value in sums.items()}

    def _clip(self, count: int) -> float:
        """Turn summed gradients into those of the mean, no longer than `clip_norm`; the norm before clipping."""
        grads = [p.grad for p in self.optimiser.parameters.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads)) / count
        scale = min(1.0, self.config.clip_norm / max(norm, 1e-12)) / count
        if math.isfinite(norm):
            torch._foreach_mul_(grads, scale)
        return norm

    def _roll_back(self, reason: Reason) -> None:
        """Go back to the anchor and pass over the batches from there to here.

        The state at the anchor comes from the newest checkpoint before it, by taking the steps in between once more.
        """
        guard, anchor = self.guard, self.guard.anchor(self.step)
        jumps = [*guard.jumps, Jump(anchor, self.step - anchor + 1, reason)]
        if len(jumps) > guard.config.max_rollbacks:
            raise StepError(
                f"{reason} losses at step {self.step} again, after {len(guard.jumps)} rollbacks",
                hint="a lower learning rate, or a look at the data, should help",
            )
        found = self.checkpoints.load(at_most=anchor)
        if not found:
            raise StepError(f"no checkpoint is left to roll back to from step {self.step}")
        self.observer.log(f"step {self.step}: rolling back to step {anchor}, passing over {jumps[-1].batches} batches")
        self.checkpoints.forget_after(anchor)
        self._restore(found)
        guard.jumps = jumps

    def _write_log(self, row: dict[str, Any]) -> None:
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.observer.metric(name, value, self.step)

    def _save(self) -> None:
        tensors: dict[str, dict[str, Tensor]] = {
            "model": {name: parameter.data for name, parameter in self.optimiser.parameters.items()},
            "optimiser": self.optimiser.state(),
        }
        state: dict[str, Any] = {
            "tokens": self.tokens,
            "stopped": self.stopped,
            "guard": self.guard.state(),
            "rng": rng_state(),
            "log_bytes": self.log_path.stat().st_size,
        }
        if self.monitor:
            tensors["monitor"] = self.monitor.tensors()
            state["monitor"] = self.monitor.state()
        snapshot = Snapshot(self.step, tensors, state)
        self.checkpoints.save(snapshot, anchors=self.guard.anchors(self.step), before=lambda: fsync(self.log_path))

    @torch.no_grad()
    def _restore(self, found: Snapshot) -> None:
        for name, parameter in self.optimiser.parameters.items():
            parameter.copy_(found.tensors["model"][name])
        self.optimiser.load_state({key: value.to(self.device) for key, value in found.tensors["optimiser"].items()})
        self.step, self.tokens, self.stopped = found.step, found.state["tokens"], found.state["stopped"]
        self.guard.load_state(found.state["guard"])
        load_rng_state(found.state["rng"])
        with self.log_path.open("r+b") as log:
            log.truncate(found.state["log_bytes"])
        if self.monitor:
            self.monitor.load(dict(found.tensors["monitor"]), found.state["monitor"])

    def _result(self) -> Result:
        rows = [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]
        losses = [row["loss"] for row in rows if "skipped" not in row]
        last = losses[-max(1, len(losses) // 20) :]
        return Result(
            steps=self.step,
            tokens=self.tokens,
            loss=sum(last) / max(1, len(last)),
            skipped=self.guard.skipped,
            jumps=self.guard.jumps,
            stopped=self.stopped,
        )
