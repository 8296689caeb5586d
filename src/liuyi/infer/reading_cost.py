"""What reading pieces of prompts adds to a step, learned from steps that did.

    cost = ReadingCost()
    cost.learn([Piece(64, 1024, 1 / 3)], seconds=0.004)
    cost.tokens(seconds=0.006, position=1088, most=512, share=1 / 3)

Linear in four things: pieces, their tokens, where they lie, and tokens times where they lie; the last two for
attention, which reads all that came before once for a piece and multiplies it once for each token; and all of it in the
share of the layers that a piece goes through. Learned by Kaczmarz's method (normalised least mean squares: Widrow and
Hoff, 1960), which corrects what it says of the piece just read in every step, and of others the more the likelier they
are to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens of a prompt that are read in a step."""

    tokens: int
    position: int
    """Of the first of them."""
    share: float = 1.0
    """Of the layers that they go through."""


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

    def tokens(self, seconds: float, position: int, most: int, share: float = 1.0) -> int:
        """The most tokens at a position that one more piece may have in so many seconds, 0 to `most`."""
        return bisect_right(
            range(1, most + 1), seconds, key=lambda count: self.seconds([Piece(count, position, share)])
        )

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
        change = rate * error / _dot(parts, parts)
        self._weights = [max(0.0, weight + change * part) for weight, part in zip(self._weights, parts, strict=True)]


def _parts(pieces: Sequence[Piece]) -> list[float]:
    """Each about one for a piece of eight tokens at position 1,024."""
    parts = [0.0] * 4
    for tokens, position, share in pieces:
        middle = position + (tokens - 1) / 2
        for at, part in enumerate((1.0, tokens / 8, middle / 1024, tokens * middle / 8192)):
            parts[at] += share * part
    return parts


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
