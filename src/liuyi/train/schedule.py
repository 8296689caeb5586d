"""Learning-rate schedules: the factor on every group's learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int], float]
ScheduleName = Literal["wsd", "cosine", "linear", "constant"]


def make_schedule(
    name: ScheduleName, *, steps: int, warmup_steps: int = 0, decay_steps: int | None = None, floor: float = 0.0
) -> Schedule:
    """The factor at steps `0 … steps - 1`: a linear warm-up, then the named shape, which reaches `floor` at `steps`.

    `wsd` holds 1 and then falls linearly over the last `decay_steps` (warm-up–stable–decay, Hu et al. 2024,
    "MiniCPM"); left out, these are a fifth of all steps. `cosine` and `linear` fall from the end of the warm-up on.
    """
    if warmup_steps >= steps > 0:
        warmup_steps = steps - 1
    if decay_steps is None:
        decay_steps = max(1, steps // 5)
    falling = decay_steps if name == "wsd" else steps - warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if name == "constant":
            return 1.0
        done = min(1.0, max(0.0, 1.0 - (steps - step) / max(1, falling)))
        shape = 0.5 * (1.0 + math.cos(math.pi * done)) if name == "cosine" else 1.0 - done
        return floor + (1.0 - floor) * shape

    return factor
