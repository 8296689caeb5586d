"""How much of prompts a step may read beside sequences that generate, so that their tokens keep coming evenly.

pace = Pace(prefill_tokens=512, stretch=1.6, layers=30)
budget = pace.budget(generating=4, reading=1)
tokens, layers = budget.piece(position=1024, unread=3072)      # 70 tokens through the first 5 layers
budget.take(piece := Piece(70, 1024, 5 / 30))
pace.observe(generating=4, drafted=0, read=[piece], seconds=0.011)
layers = pace.budget(generating=4, reading=1).layers(70, position=1024, left=25)

Where few tokens could be read through all layers, many are through a few layers a step (layered prefill, arXiv
2510.08055): what came before them is then read once for many tokens, and so are the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil

from liuyi.infer.reading_cost import Piece, ReadingCost
from liuyi.infer.verify_cost import VerifyCost

_MANY = 64
"""Tokens of a prompt that are read together, in several steps where one is not enough for them: with fewer, what came
before is read more often, and with more a single layer takes too much of a step."""
_LATE = 0.05
"""Part of its time by which a step may be longer, lest what was to be read in four steps be in five."""
_FIRST = 8
"""Tokens of the first paced step, which nothing is known of."""
_GROWTH = 2
"""Times the work of the last paced step that the next may have: what was never tried may cost more than expected."""
_LOOK_AGAIN = 32
"""Steps after which one without prompts and drafts is taken, to see what that takes now: texts grow meanwhile."""
_RECENT, _APART = 5, 16
"""Steps without prompts and drafts that are remembered, and how many lie between two of them: what slows a row of them
down, as a long request does that arrives, is not what such steps take."""


class Budget:
    """What one step may still read."""

    def __init__(self, tokens: float, seconds: float, cost: ReadingCost, layers: int) -> None:
        """At most so many tokens through all layers, or as much of others, in about so many seconds; the least that can
        be read whatever it takes."""
        self._tokens = tokens
        self._seconds = seconds
        self._cost = cost
        self._layers = layers
        self._taken: list[Piece] = []

    def piece(self, position: int, unread: int, *, whole: bool = False) -> tuple[int, int]:
        """Tokens of the next piece, of so many unread from a position on, and how many layers they go through first.

        All layers if it is to be read `whole`, and wherever many tokens or all can be; (0, 0) if none may.
        """
        left_s, most = self._left_s, min(unread, int(self._tokens))
        if self._taken and left_s <= 0:
            return 0, 0
        tokens = self._cost.tokens(left_s, position, most)
        if whole or tokens == most or tokens >= _MANY or self._layers == 1:
            tokens = max(tokens, 0 if self._taken else min(1, most))
            return tokens, self._layers if tokens else 0
        tokens = min(unread, _MANY)
        layers = self.layers(tokens, position, self._layers)
        # Fewer where even one layer would take too long, more where steps would not be full.
        share = layers / self._layers
        most = min(unread, 2 * _MANY, int(self._tokens / share))
        tokens = max(self._cost.tokens(left_s, position, most, share), 0 if self._taken else 1)
        return tokens, layers if tokens else 0

    def layers(self, tokens: int, position: int, left: int) -> int:
        """How many of its `left` layers a piece goes through in this step, if the next ones have as much time."""
        if self._tokens < 1:
            return 0
        layer_s = self._cost.seconds([Piece(tokens, position, 1 / self._layers)])
        most = min(left, int(self._tokens * self._layers / tokens))
        if layer_s * most > (time_s := (1 + _LATE) * self._left_s):
            most = int(time_s / layer_s)
        # Evened out, so that the last step is as long as the others.
        return ceil(left / ceil(left / max(1, most)))

    def take(self, piece: Piece) -> None:
        """This will be read."""
        self._tokens -= piece.share * piece.tokens
        self._taken.append(piece)

    @property
    def _left_s(self) -> float:
        return self._seconds - self._cost.seconds(self._taken)


class Pace:
    """Learns what a step takes with and without prompts, and shares its time out between them."""

    def __init__(self, prefill_tokens: int, stretch: float | None = None, layers: int = 1) -> None:
        """`prefill_tokens` are the most that a step reads, and what it reads while nothing generates.

        `stretch` is how many times longer than without prompts a step may take where something generates and one
        prompt is read. Where several are, each waits for those before it and only then joins the others' steps, so the
        time for them grows with the square of their number over that of the generating sequences. None means that a
        step always reads `prefill_tokens`, whatever time it takes: steps then never depend on a clock.

        `layers` are those after each of which reading may stop until the next step; 1 where it may not.
        """
        self.prefill_tokens = prefill_tokens
        self.stretch = stretch
        self.layers = layers
        self.verify_cost = VerifyCost()
        """What drafted tokens add to a step."""
        self._reading = ReadingCost()
        self._most: float = _FIRST
        self._bare_s: dict[int, deque[float]] = {}
        self._looked: dict[int, int] = {}
        self._steps = 0

    def budget(self, generating: int, reading: int) -> Budget:
        """What the next step may read, where so many sequences generate and so many are read."""
        if self.stretch is None or not generating:
            return self._budget(self.prefill_tokens, float("inf"))
        step_s = self.step_s(generating)
        if step_s is None or self.looks(generating):
            return self._budget(0, 0.0)
        more = (self.stretch - 1) * max(1.0, reading**2 / generating)
        return self._budget(min(self._most, self.prefill_tokens), more * step_s)

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
            recent = self._bare_s.setdefault(size, deque(maxlen=_RECENT))
            if len(recent) < _RECENT or self._steps - self._looked[size] >= _APART:
                self._looked[size] = self._steps
                recent.append(seconds)
            self.verify_cost.learn(0, 0.0)
        elif step_s is not None:
            more_s = max(seconds - step_s, 0.01 * seconds)
            if read:
                self._reading.learn(read, max(0.0, more_s - self.verify_cost.seconds(drafted)))
                self._most = max(_FIRST, _GROWTH * sum(piece.share * piece.tokens for piece in read))
            else:
                self.verify_cost.learn(drafted, more_s)

    def step_s(self, generating: int) -> float | None:
        """Seconds of a step without other tokens, of the most similar number of sequences seen; None before any.

        The lower quartile of those remembered: what comes between only ever makes a step longer.
        """
        if not self._bare_s:
            return None
        size = generating.bit_length()
        recent = sorted(self._bare_s[min(self._bare_s, key=lambda seen: abs(seen - size))])
        return recent[len(recent) // 4]

    def _budget(self, tokens: float, seconds: float) -> Budget:
        return Budget(tokens, seconds, self._reading, self.layers)
