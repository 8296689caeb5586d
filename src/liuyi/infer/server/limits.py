"""How much a key may ask for: token buckets of requests and of tokens a minute, told in OpenAI's headers."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from liuyi.infer.server.keys import ApiKey


class Bucket:
    """Fills with `per_minute` in a minute and holds no more than that; what is charged later may overdraw it."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What may be taken now; below 0 where it is overdrawn."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take out, or with a negative amount put back."""
        self._level = min(self.per_minute, self.level - amount)

    def wait_s(self, amount: float) -> float:
        """Seconds until there is so much in it; the whole bucket at most."""
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)


class Caller:
    """Whoever uses one key: its name, and what it may still ask for."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = monotonic) -> None:
        self.key = key
        self._requests = Bucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self._tokens = Bucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None

    def enter(self, tokens: int) -> tuple[str, int] | None:
        """Ask for one request of about so many tokens.

        None if it may pass; else which limit it met, `requests` or `tokens`, and after how many seconds it may pass.
        """
        for name, bucket, amount in (("requests", self._requests, 1), ("tokens", self._tokens, tokens)):
            if bucket is not None and (wait_s := bucket.wait_s(amount)) > 0:
                return name, max(1, math.ceil(wait_s))
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return None

    def settle(self, estimated: int, used: int) -> None:
        """A request for which `estimated` tokens were taken has used so many."""
        if self._tokens is not None:
            self._tokens.take(used - estimated)

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-limit-…`, `-remaining-…` and `-reset-…` for each limit that there is."""
        headers = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
                headers[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(bucket.per_minute):.3f}s"
        return headers
