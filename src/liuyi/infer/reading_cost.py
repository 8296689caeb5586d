"""What reading pieces of prompts adds to a step, learned from steps that did.

    cost = ReadingCost()
    cost.learn([(8, 1024)], seconds=0.004)
    cost.tokens(seconds=0.006, position=1032, most=512)

Linear in four things: pieces, their tokens, where they lie, and tokens times where they lie; the last two for
attention, which reads all that came before once for a piece and multiplies it once for each token. Learned by
Kaczmarz's method (normalised least mean squares: Widrow and Hoff, 1960), which corrects what it says of the piece just
read in every step, and of others the more the likelier they are to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

Piece = tuple[int, int]
"""Tokens of a piece, and the position of its first."""

_RISE, _FALL = 0.5, 0.2
"""Parts by which a cost that was too low and one that was too high are corrected: a step too long is what hurts."""
_LEAP = 3.0
"""Times the expected cost beyond which a measured one counts as so much."""
_AGREED = 3
"""Steps in a row that must have taken more than expected before any of it is believed."""


class ReadingCost:
    """Seconds for pieces of prompts, beside what else is in a step."""

    def __init__(self) -> None:
        self._weights = [0.0] * 4
        self._excess: deque[float] = deque([1.0] * _AGREED, maxlen=_AGREED)
        """Times the expected cost that the last pieces took."""

    def seconds(self, pieces: Sequence[Piece]) -> float:
        """What these pieces will take together; 0 while nothing is known."""
        return _dot(self._weights, _parts(pieces))

    def tokens(self, seconds: float, position: int, most: int) -> int:
        """The most tokens at a position that one more piece may have in so many seconds, 0 to `most`."""
        return bisect_right(range(1, most + 1), seconds, key=lambda count: self.seconds([(count, position)]))

    def learn(self, pieces: Sequence[Piece], seconds: float) -> None:
        """These pieces together added so many seconds to a step.

        More than expected is believed as far as the steps before say it too: what else the machine does in between
        makes single steps long, and would be taken for what reading costs.
        """
        parts, expected = _parts(pieces), self.seconds(pieces)
        if expected:
            excess = seconds / expected
            self._excess.append(excess)
            error = (min(excess, max(1.0, min(self._excess)), _LEAP) - 1.0) * expected
            rate = _RISE if error > 0 else _FALL
        else:
            # Nothing is known of such pieces: several times nothing is no bound for what they may cost.
            error, rate = seconds, 1.0
        share = rate * error / _dot(parts, parts)
        self._weights = [max(0.0, weight + share * part) for weight, part in zip(self._weights, parts, strict=True)]


def _parts(pieces: Sequence[Piece]) -> list[float]:
    """Each about one for a piece of eight tokens at position 1,024."""
    middles = [position + (count - 1) / 2 for count, position in pieces]
    tokens = sum(count for count, _ in pieces)
    looks = sum(count * middle for (count, _), middle in zip(pieces, middles, strict=True))
    return [float(len(pieces)), tokens / 8, sum(middles) / 1024, looks / 8192]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
