"""Who may come in: so many requests, and so many tokens of prompt and answer, are in work or wait; more are refused.

    with_place = admission.enter(requests=1, prompt_bytes=len(text), answer_tokens=256)   # before any work is done
    with_place.settle(tokens)                                                             # once the tokens are counted
    with_place.leave(tokens_done)

A request is judged first by the bytes of its prompt, which cost nothing to count. How long a refused client should
wait is estimated from the tokens that were finished of late.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from liuyi.infer.errors import Overloaded, RequestError

LONGEST_RETRY_S = 60
_FORGET = 0.9
"""What is left of a measurement after another one."""


class Place:
    """What one call holds of the limits until it leaves."""

    def __init__(self, admission: Admission, requests: int, tokens: int) -> None:
        self._admission = admission
        self.requests = requests
        self.tokens = tokens
        self._left = False

    def settle(self, tokens: int, prompt_bytes: int = 0, prompt_tokens: int = 0) -> None:
        """The call needs so many tokens; `prompt_bytes` made `prompt_tokens`, from which later estimates learn.

        Raises Overloaded if these are too many now, RequestError if they always are; the place is then left.
        """
        admission = self._admission
        admission.learn(prompt_bytes, prompt_tokens)
        if tokens > admission.max_tokens:
            self.leave()
            raise RequestError(
                f"prompts and answers may have {tokens} tokens, and this server takes {admission.max_tokens} at once",
                param="max_tokens",
            )
        admission.tokens -= self.tokens
        if tokens > admission.max_tokens - admission.tokens:
            self.tokens = 0
            self.leave()
            raise admission.refusal(tokens=tokens)
        self.tokens = tokens
        admission.tokens += tokens

    def leave(self, done_tokens: int = 0) -> None:
        """All is over; only the first call counts. `done_tokens` were read and written if it was answered."""
        if not self._left:
            self._left = True
            self._admission.leave(self, done_tokens)


class Admission:
    """The limits of one backend."""

    def __init__(self, *, max_requests: int, max_tokens: int, clock: Callable[[], float] = monotonic) -> None:
        """`max_requests` and `max_tokens` may be in work or wait at the same time."""
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.requests = 0
        self.tokens = 0
        self.tokens_per_byte = 0.3
        """As measured of late."""
        self._clock = clock
        self._measured_from = clock()
        self._done_tokens = 100.0
        self._done_s = 1.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens, read and written, of the calls that were finished of late."""
        return self._done_tokens / self._done_s

    def enter(self, *, requests: int, prompt_bytes: int = 0, prompt_tokens: int = 0, answer_tokens: int = 0) -> Place:
        """A place for a call, of which the tokens are known or estimated by the bytes of its prompts.

        Raises Overloaded if there is none now, RequestError if there never is one for so many requests.
        """
        if requests > self.max_requests:
            raise RequestError(
                f"{requests} answers are asked for at once, and this server takes {self.max_requests}", param="n"
            )
        tokens = prompt_tokens + math.ceil(prompt_bytes * self.tokens_per_byte) + answer_tokens
        # What is only estimated never shuts a call out for good.
        tokens = min(tokens, self.max_tokens)
        if requests > self.max_requests - self.requests or tokens > self.max_tokens - self.tokens:
            raise self.refusal(requests=requests, tokens=tokens)
        if not self.requests:
            self._measured_from = self._clock()
        self.requests += requests
        self.tokens += tokens
        return Place(self, requests, tokens)

    def leave(self, place: Place, done_tokens: int) -> None:
        """Give a place back."""
        self.requests -= place.requests
        self.tokens -= place.tokens
        if done_tokens:
            now = self._clock()
            self._done_tokens = self._done_tokens * _FORGET + done_tokens
            self._done_s = self._done_s * _FORGET + max(1e-6, now - self._measured_from)
            self._measured_from = now

    def learn(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """So many bytes made so many tokens."""
        if prompt_bytes:
            self.tokens_per_byte += 0.1 * (prompt_tokens / prompt_bytes - self.tokens_per_byte)

    def refusal(self, *, requests: int = 0, tokens: int = 0) -> Overloaded:
        """Why a call is refused now, and when there may be room for it."""
        mean_tokens = self.tokens / max(1, self.requests)
        too_many = max(0, self.requests + requests - self.max_requests)
        must_leave = max(self.tokens + tokens - self.max_tokens, too_many * mean_tokens)
        return Overloaded(
            f"{self.requests} requests with up to {self.tokens} tokens are in work or wait; "
            f"this server takes {self.max_requests} with {self.max_tokens}",
            retry_after_s=min(LONGEST_RETRY_S, max(1, math.ceil(must_leave / self.tokens_per_s))),
        )
