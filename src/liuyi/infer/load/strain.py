"""What the client itself takes and how late it is: one that cannot keep up measures itself and not the server."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

TICK_S = 0.05


@dataclass
class Strain:
    """How the client bore a measurement."""

    core_s: float = 0.0
    """Seconds of a core that it took."""
    duration_s: float = 0.0
    late_s: list[float] = field(default_factory=list)
    """By how much it was late at each of many appointments, as it may have been for any piece; exact to 1 ms."""

    @property
    def core(self) -> float:
        """The share of one core that it took."""
        return self.core_s / self.duration_s if self.duration_s else 0.0


@asynccontextmanager
async def strained() -> AsyncIterator[Strain]:
    """Watch the client as long as the block lasts; the figures are there after it."""
    strain = Strain()
    # A full search for garbage takes 50 ms, most of it over what was loaded once: that is left out of it meanwhile.
    gc.collect()
    gc.freeze()
    began, worked = time.perf_counter(), time.process_time()
    ticking = asyncio.create_task(_tick(strain.late_s))
    try:
        yield strain
    finally:
        ticking.cancel()
        strain.core_s, strain.duration_s = time.process_time() - worked, time.perf_counter() - began
        gc.unfreeze()


async def _tick(late_s: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + TICK_S
        await asyncio.sleep(TICK_S)
        late_s.append(clock() - due)
