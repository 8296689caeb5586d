"""What the client itself takes and how late it is: one that cannot keep up measures itself and not the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

TICK_S = 0.02


@dataclass
class Strain:
    """How the client bore a measurement."""

    core: float = 0.0
    """The share of one core that it took."""
    late_s: list[float] = field(default_factory=list)
    """By how much it was late at each of many appointments, as it may have been for any piece; exact to 1 ms."""


@asynccontextmanager
async def strained() -> AsyncIterator[Strain]:
    """Watch the client as long as the block lasts; the figures are there after it."""
    strain, began, worked = Strain(), time.perf_counter(), time.process_time()
    ticking = asyncio.create_task(_tick(strain.late_s))
    try:
        yield strain
    finally:
        ticking.cancel()
        strain.core = (time.process_time() - worked) / max(time.perf_counter() - began, 1e-9)


async def _tick(late_s: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + TICK_S
        await asyncio.sleep(TICK_S)
        late_s.append(clock() - due)
