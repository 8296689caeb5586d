"""What checking drafted tokens adds to a step, learned from steps that did.

    cost = VerifyCost()
    cost.learn(16, seconds=0.003)
    cost.seconds(12)

Not linear: sixteen rows of a matrix unit's tile cost what one does, and where memory is the bound a few more cost
nearly nothing. So it is a curve through what was measured, by powers of two.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import overload

import numpy as np
from numpy.typing import NDArray

_FIRST = 8
"""Tokens that are tried while nothing is known."""
_GROWTH = 2
"""Times the most tokens known of that may be tried: what was never tried may cost more than expected."""
_RECENT = 7
"""Measurements of which the median is taken."""
_AGREED = 3
"""Measurements before any is believed: what else the machine does makes single steps long."""
_OLD = 256
"""Steps after which a measurement is forgotten: what seemed dear once would never be tried again."""


class VerifyCost:
    """Seconds for drafted tokens, beside what else is in a step."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[int, int, float]]] = {}
        """By the number of bits of their number: when so many tokens were checked, how many, and the seconds."""
        self._steps = 0
        self._curve: list[tuple[float, float]] = [(0.0, 0.0)]

    @property
    def most(self) -> int:
        """The most tokens that should be drafted for one step."""
        return max(_FIRST, int(_GROWTH * self._curve[-1][0]))

    @property
    def least_token_s(self) -> float:
        """What each of some tokens adds at least, however many they are; 0 while nothing is known."""
        return min((seconds / tokens for tokens, seconds in self._curve[1:]), default=0.0)

    @overload
    def seconds(self, tokens: int) -> float: ...
    @overload
    def seconds(self, tokens: NDArray[np.intp]) -> NDArray[np.float64]: ...
    def seconds(self, tokens: int | NDArray[np.intp]) -> float | NDArray[np.float64]:
        """What so many tokens add; beyond what is known as much for each as before; 0 while nothing is known."""
        known, known_s = zip(*self._curve, strict=True)
        last, last_s = self._curve[-1]
        beyond = np.maximum(tokens, last) - last
        more: NDArray[np.float64] = np.interp(tokens, known, known_s) + beyond * (last_s / last if last else 0.0)
        return more

    def learn(self, tokens: int, seconds: float) -> None:
        """So many drafted tokens added so many seconds to a step; 0 of them: a step has passed without."""
        self._steps += 1
        if tokens:
            self._seen.setdefault(tokens.bit_length(), deque(maxlen=_RECENT)).append((self._steps, tokens, seconds))
        for seen in self._seen.values():
            while seen and seen[0][0] < self._steps - _OLD:
                seen.popleft()
        self._curve = self._drawn()

    def _drawn(self) -> list[tuple[float, float]]:
        """Points of the curve by rising tokens; no number of tokens costs more than a larger one."""
        points: list[tuple[float, float]] = []
        bound = float("inf")
        for _, seen in sorted(self._seen.items(), reverse=True):
            if len(seen) >= _AGREED:
                bound = min(bound, median(seconds for _, _, seconds in seen))
                points.append((median(tokens for _, tokens, _ in seen), bound))
        return [(0.0, 0.0), *reversed(points)]
