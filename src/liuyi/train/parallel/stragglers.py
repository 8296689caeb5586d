"""Who holds the others up: how long each rank computes at a step, compared with the rest.

What a rank spends in collectives is waiting for others, and does not count. A rank's time is its median over a window
of steps, so that one hiccup is nobody's fault; it is compared with the lower median of all ranks, so that of two the
slower one is the slow one. Tensor- and context-parallel ranks wait for each other inside the layers, where nobody looks
at the clock: they are slow together.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, median_low

from liuyi.train.world import World

WINDOW_STEPS = 20
SLOW = 1.25
"""Times the usual step from which on a rank is called slow."""


@dataclass(frozen=True)
class Report:
    ratios: list[float]
    """Each rank's time for a step, relative to the ranks' median."""

    @property
    def slow(self) -> list[int]:
        """The ranks that hold the others up."""
        return [rank for rank, ratio in enumerate(self.ratios) if ratio > SLOW]

    def __str__(self) -> str:
        found = ", ".join(f"rank {rank} takes {self.ratios[rank]:.2f} times as long" for rank in self.slow)
        return f"{found} as the others" if found else "all ranks are about as fast"


class Stragglers:
    """Collects the steps of this process, and compares them with the others' once in `window_steps`."""

    def __init__(self, world: World, window_steps: int = WINDOW_STEPS) -> None:
        self.world = world
        self.window_steps = window_steps
        self._steps_s: list[float] = []

    def after_step(self, computed_s: float) -> Report | None:
        """Note a step; a report when the window is full. All ranks call it equally often."""
        if self.world.size == 1:
            return None
        self._steps_s.append(computed_s)
        if len(self._steps_s) < self.window_steps:
            return None
        times = self.world.gather(median(self._steps_s))
        self._steps_s.clear()
        usual = max(median_low(times), 1e-9)
        return Report([time / usual for time in times])
