"""Sends requests: at given times whatever the server does (open loop), or in so many lanes (closed loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.workload import Ask

Send = Callable[[Ask, float, float], Coroutine[Any, Any, Outcome]]
"""Sends a request that is due at a time, in a measurement that began at another (of the event loop's clock)."""


async def at_times(send: Send, asks: Sequence[Ask], ended: Callable[[], None]) -> list[Outcome]:
    """Send each when it is due, whether or not others have been answered; `ended` is called after each."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(ask: Ask) -> Outcome:
        outcome = await send(ask, ask.due_s, began)
        ended()
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = []
        for ask in sorted(asks, key=lambda ask: ask.due_s):
            await asyncio.sleep(began + ask.due_s - loop.time())
            tasks.append(group.create_task(one(ask)))
    return [task.result() for task in tasks]


async def in_lanes(send: Send, asks: Sequence[Ask], lanes: int, ended: Callable[[], None]) -> list[Outcome]:
    """Keep `lanes` requests under way until all are answered; `ended` is called after each."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = iter(asks)
    outcomes: list[Outcome] = []

    async def lane() -> None:
        for ask in waiting:
            outcomes.append(await send(ask, loop.time() - began, began))
            ended()

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return outcomes


@dataclass(frozen=True)
class Load:
    """Requests and how they are sent."""

    label: str
    asks: Sequence[Ask]
    lanes: int | None = None
    """Requests kept under way; None sends each when it is due."""

    async def run(self, send: Send, ended: Callable[[], None]) -> list[Outcome]:
        """Send them all; `ended` is called after each."""
        if self.lanes is None:
            return await at_times(send, self.asks, ended)
        return await in_lanes(send, self.asks, self.lanes, ended)
