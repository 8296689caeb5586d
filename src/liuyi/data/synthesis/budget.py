"""What may be spent: requests and tokens. Neither limit is ever passed, whatever answers turn out to need."""

from __future__ import annotations

import asyncio


class BudgetSpent(Exception):
    """There is no request left."""


class Budget:
    """Counts what is spent and what requests under way may still take."""

    def __init__(
        self, max_requests: int | None, max_tokens_out: int | None, *, requests: int = 0, tokens_out: int = 0
    ) -> None:
        """`requests` and `tokens_out` were spent before."""
        self.requests = requests
        self.tokens_out = tokens_out
        self.spent = False
        """Whether something was not asked because of it."""
        self._most_requests = max_requests
        self._most_tokens = max_tokens_out
        self._reserved = 0
        self._settled = asyncio.Condition()

    async def reserve(self, tokens: int) -> bool:
        """Set aside tokens for an answer, waiting for those under way if they may leave enough; False if it is not."""
        async with self._settled:
            while not self.spent:
                if self._most_requests is not None and self.requests >= self._most_requests:
                    self.spent = True
                elif self._most_tokens is None or self.tokens_out + self._reserved + tokens <= self._most_tokens:
                    self._reserved += tokens
                    return True
                elif not self._reserved:
                    self.spent = True
                else:
                    await self._settled.wait()
            self._settled.notify_all()
            return False

    def request(self) -> None:
        """Count a request that is about to be sent. Raises BudgetSpent if there is none left."""
        if self._most_requests is not None and self.requests >= self._most_requests:
            self.spent = True
            raise BudgetSpent
        self.requests += 1

    async def settle(self, reserved: int, used: int) -> None:
        """Give back what was set aside, and count what was used."""
        async with self._settled:
            self._reserved -= reserved
            self.tokens_out += used
            self._settled.notify_all()
