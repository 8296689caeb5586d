"""Many requests at once: tried again with patience, bounded in number, kept on disk as they are answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from liuyi.core.errors import StepError
from liuyi.data.synthesis.ask import Answer, Ask, Failed
from liuyi.data.synthesis.budget import Budget, BudgetSpent
from liuyi.data.synthesis.endpoint import Endpoint
from liuyi.data.synthesis.store import AnswerStore

LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 600.0
_FEWEST_IN_A_ROW = 8


@dataclass(frozen=True)
class Patience:
    """How often a request is sent, and how long to wait between (exponential backoff with jitter)."""

    tries: int = 6
    first_wait_s: float = 1.0

    def wait_s(self, failures: int) -> float:
        """Between half and all of `first_wait_s · 2^(failures − 1)`, so that requests that failed together part."""
        return float(min(LONGEST_WAIT_S, self.first_wait_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.0))


@dataclass
class Faults:
    """What went wrong, by reason."""

    tries: Counter[str] = field(default_factory=Counter)
    """Single tries that failed; most of them were answered later."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Requests that were never answered."""


class Queue:
    """Asks an endpoint `concurrency` things at once."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        budget: Budget,
        *,
        concurrency: int,
        patience: Patience,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.faults = Faults()
        self._endpoint = endpoint
        self._store = store
        self._budget = budget
        self._concurrency = concurrency
        self._patience = patience
        self._on_answer = on_answer
        self._not_before = 0.0
        self._in_a_row = 0

    async def answer(self, asks: Iterable[Ask]) -> None:
        """Put the answers into the store; those that are there are not asked for again.

        Raises StepError when the endpoint answers nothing any more. Whatever was answered by then is kept.
        """
        unanswered = list(self._unanswered(asks))
        waiting = iter(unanswered)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(unanswered))):
                    group.create_task(self._work(waiting))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._store.flush()

    def _unanswered(self, asks: Iterable[Ask]) -> Iterator[Ask]:
        seen: set[str] = set()
        for ask in asks:
            if ask.key not in self._store and ask.key not in seen:
                seen.add(ask.key)
                yield ask

    async def _work(self, waiting: Iterator[Ask]) -> None:
        for ask in waiting:
            most = ask.sampling.max_tokens
            if not await self._budget.reserve(most):
                return
            used = 0
            try:
                answer, tries = await self._patiently(ask)
                used = most if answer.tokens_out is None else answer.tokens_out
                self._store.add(ask.key, answer, tries=tries, tokens_out=used)
                self._in_a_row = 0
                self._on_answer()
            except BudgetSpent:
                return
            except Failed as failed:
                self._give_up(failed)
            finally:
                await self._budget.settle(most, used)

    async def _patiently(self, ask: Ask) -> tuple[Answer, int]:
        tries = 0
        while True:
            await self._when_allowed()
            self._budget.request()
            tries += 1
            try:
                return await self._endpoint.ask(ask), tries
            except Failed as failed:
                self.faults.tries[failed.reason] += 1
                if not failed.retry or failed.fatal or tries == self._patience.tries:
                    raise
                if failed.retry_after_s:
                    # What one request is told holds for all: the endpoint is asked nothing before that time.
                    wait_s = min(failed.retry_after_s, _LONGEST_RETRY_AFTER_S)
                    self._not_before = max(self._not_before, time.monotonic() + wait_s)
                else:
                    await asyncio.sleep(self._patience.wait_s(tries))

    async def _when_allowed(self) -> None:
        while (left_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left_s + random.uniform(0, 0.1 * left_s))

    def _give_up(self, failed: Failed) -> None:
        self.faults.given_up[failed.reason] += 1
        if failed.retry or not self._store.answers:
            # A request that is refused for what it says tells nothing about the next, once the endpoint has answered.
            self._in_a_row += 1
        if failed.fatal or self._in_a_row >= max(_FEWEST_IN_A_ROW, self._concurrency):
            what = "the endpoint refuses" if failed.fatal else f"the last {self._in_a_row} requests were not answered"
            raise StepError(
                f"{what}: {failed}",
                where=self._endpoint.where,
                hint=f"{self._store.answers:,} answers are kept; a resumed run goes on from there",
            )
