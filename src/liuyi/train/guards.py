"""Guards: what the loop does when numbers go bad.

A step whose loss or gradient is not finite, or whose loss is a spike, is skipped. When that happens several times in
a row the run rolls back to an earlier step and passes over the data in between. Every decision is a function of the
steps before it, never of when checkpoints happened to be written, so a resumed run decides the same.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from liuyi.core.errors import StepError
from liuyi.train.parallel.gradients import local

Decision = Literal["step", "skip", "rollback"]
Reason = Literal["", "non-finite", "spike"]


@dataclass(frozen=True)
class GuardConfig:
    """When to skip, when to roll back, when to give up."""

    patience: int = 3
    """Bad steps in a row that lead to a rollback."""
    max_rollbacks: int = 3
    """Rollbacks after which the run fails."""
    rollback_steps: int = 50
    """A rollback goes to a multiple of this many steps."""
    first_step: int = 0
    """A rollback goes no further back: where a branch began, what came before is another run's."""
    spike_z: float = 10.0
    """A loss this many robust deviations above the window's median is a spike."""
    least_deviation: float = 0.05
    """In nats: a fine-tuned model's losses lie so close together that any hard batch would stand out."""
    window: int = 64
    min_window: int = 32


@dataclass(frozen=True)
class Jump:
    """From `step` on, batches come `batches` later than they would have."""

    step: int
    batches: int
    reason: Reason
    skipped: int = 0
    """How many of the steps that were rolled back had been skipped."""


def demand_numbers(model: nn.Module) -> None:
    """Raises StepError for weights that are not finite: no step from there would be one."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(local(parameter.detach()).isfinite().all()):
            raise StepError(f"the start model has weights in '{name}' that are not finite", hint="take another model")


@dataclass
class Guard:
    """The guard's memory; all of it is in every checkpoint."""

    config: GuardConfig = field(default_factory=GuardConfig)
    losses: deque[float] = field(default_factory=deque)
    bad_in_a_row: int = 0
    skips: list[int] = field(default_factory=list)
    """The steps that were skipped, of those that no rollback has undone."""
    jumps: list[Jump] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How often a step was skipped, before rollbacks too."""
        return len(self.skips) + sum(jump.skipped for jump in self.jumps)

    def judge(self, step: int, loss: float, grad_norm: float) -> tuple[Decision, Reason]:
        """What to do with a step of this mean loss and gradient norm."""
        reason = self._reason(loss, grad_norm)
        if not reason:
            self.bad_in_a_row = 0
            self.losses.append(loss)
            if len(self.losses) > self.config.window:
                self.losses.popleft()
            return "step", reason
        self.bad_in_a_row += 1
        self.skips.append(step)
        return ("rollback" if self.bad_in_a_row >= self.config.patience else "skip"), reason

    def _reason(self, loss: float, grad_norm: float) -> Reason:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "non-finite"
        if len(self.losses) >= self.config.min_window:
            window = np.array(self.losses)
            median = float(np.median(window))
            deviation = 1.4826 * float(np.median(np.abs(window - median)))
            if (loss - median) > self.config.spike_z * max(deviation, self.config.least_deviation):
                return "spike"
        return ""

    def anchor(self, step: int) -> int:
        """The step that a rollback at `step` goes to, never one before where the run began or the last one went."""
        last = self.jumps[-1].step if self.jumps else 0
        usual = (step - self.config.patience) // self.config.rollback_steps * self.config.rollback_steps
        return max(self.config.first_step, last, usual)

    def jump(self, step: int, reason: Reason) -> Jump:
        """The rollback from `step`, which passes over the batches from the anchor to it."""
        anchor = self.anchor(step)
        return Jump(anchor, step - anchor + 1, reason, sum(skip >= anchor for skip in self.skips))

    def anchors(self, step: int) -> list[int]:
        """The steps that rollbacks from here on may go to."""
        anchor, every = self.anchor(step), self.config.rollback_steps
        return [anchor, *range((anchor // every + 1) * every, step + 1, every)]

    def batch_index(self, step: int) -> int:
        """Which global batch `step` reads."""
        return step + sum(jump.batches for jump in self.jumps if jump.step <= step)

    def state(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "bad_in_a_row": self.bad_in_a_row,
            "skips": self.skips,
            "jumps": [asdict(jump) for jump in self.jumps],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"])
        self.bad_in_a_row = state["bad_in_a_row"]
        self.skips = list(state["skips"])
        self.jumps = [Jump(**jump) for jump in state["jumps"]]
