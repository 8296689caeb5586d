"""How many prompt tokens a step may read beside sequences that generate, so that their tokens keep coming evenly.

pace = Pace(prefill_tokens=512, stretch=1.8)
budget = pace.budget(generating=4, reading=1)
count = budget.tokens(position=1024)
budget.take(count, position=1024)
pace.observe(generating=4, drafted=0, read=[(count, 1024)], seconds=0.011)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from liuyi.infer.reading_cost import Piece, ReadingCost
from liuyi.infer.verify_cost import VerifyCost

_FIRST = 8
"""Tokens of the first paced step, which nothing is known of."""
_GROWTH = 2
"""Times the tokens of the last paced step that the next may have: what was never tried may cost more than expected."""
_LOOK_AGAIN = 64
"""Steps after which one without prompts and drafts is taken, to see what that takes now."""
_RECENT = 15
"""Steps without prompts and drafts of which the median is taken: what came between a few of them does not count."""


class Budget:
    """What one step may still read."""

    def __init__(self, tokens: int, seconds: float, cost: ReadingCost) -> None:
        """At most so many tokens, in about so many seconds; the first of them whatever it takes."""
        self._tokens = tokens
        self._seconds = seconds
        self._cost = cost
        self._taken: list[Piece] = []

    def tokens(self, position: int) -> int:
        """How many the next piece may have, if its first lies at that position."""
        left_s = self._seconds - self._cost.seconds(self._taken)
        return max(self._cost.tokens(left_s, position, self._tokens), 0 if self._taken else min(1, self._tokens))

    def take(self, count: int, position: int) -> None:
        """So many will be read there."""
        self._tokens -= count
        self._taken.append((count, position))


class Pace:
    """Learns what a step takes with and without prompts, and shares its time out between them."""

    def __init__(self, prefill_tokens: int, stretch: float | None = None) -> None:
        """`prefill_tokens` are the most that a step reads, and what it reads while nothing generates.

        `stretch` is how many times longer than without prompts a step may take where something generates and one
        prompt is read. Where several are, each waits for those before it and only then joins the others' steps, so the
        time for them grows with the square of their number over that of the generating sequences. None means that a
        step always reads `prefill_tokens`, whatever time it takes: steps then never depend on a clock.
        """
        self.prefill_tokens = prefill_tokens
        self.stretch = stretch
        self.verify_cost = VerifyCost()
        """What drafted tokens add to a step."""
        self._reading = ReadingCost()
        self._most = _FIRST
        self._bare_s: dict[int, deque[float]] = {}
        self._looked: dict[int, int] = {}
        self._steps = 0

    def budget(self, generating: int, reading: int) -> Budget:
        """What the next step may read, where so many sequences generate and so many are read."""
        if self.stretch is None or not generating:
            return Budget(self.prefill_tokens, float("inf"), self._reading)
        step_s = self.step_s(generating)
        if step_s is None or self.looks(generating):
            return Budget(0, 0.0, self._reading)
        more = (self.stretch - 1) * max(1.0, reading**2 / generating)
        return Budget(min(self._most, self.prefill_tokens), more * step_s, self._reading)

    def looks(self, generating: int) -> bool:
        """Whether the next step is to be one without prompts and drafts, to see what that takes."""
        return self._steps - self._looked.get(generating.bit_length(), -_LOOK_AGAIN) >= _LOOK_AGAIN

    def observe(self, generating: int, drafted: int, read: Sequence[Piece], seconds: float) -> None:
        """A step with so many generating sequences, tokens drafted for them, and pieces of prompts took so long."""
        if not generating:
            return
        self._steps += 1
        step_s = self.step_s(generating)
        if not drafted and not read:
            size = generating.bit_length()
            self._looked[size] = self._steps
            self._bare_s.setdefault(size, deque(maxlen=_RECENT)).append(seconds)
            self.verify_cost.learn(0, 0.0)
        elif step_s is not None:
            more_s = max(seconds - step_s, 0.01 * seconds)
            if read:
                self._reading.learn(read, max(0.0, more_s - self.verify_cost.seconds(drafted)))
                self._most = max(_FIRST, _GROWTH * sum(count for count, _ in read))
            else:
                self.verify_cost.learn(drafted, more_s)

    def step_s(self, generating: int) -> float | None:
        """Seconds of a step without other tokens, of the most similar number of sequences seen; None before any."""
        if not self._bare_s:
            return None
        size = generating.bit_length()
        return median(self._bare_s[min(self._bare_s, key=lambda seen: abs(seen - size))])
