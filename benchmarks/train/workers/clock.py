"""An observer of training that notes when each step was done."""

from __future__ import annotations

import time


class Clock:
    """What `Trainer` tells is passed over but for the time of it; `times` are by `time.perf_counter`."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        self.times.append(time.perf_counter())

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None: ...
