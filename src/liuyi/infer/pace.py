"""How many prompt tokens a step may read beside sequences that generate, so that their tokens keep coming evenly.

pace = Pace(prefill_tokens=512, stretch=1.6)
budget = pace.budget(generating=4, reading=1)
pace.observe(generating=4, other_tokens=budget, seconds=0.011)
"""

from __future__ import annotations

_FIRST = 8
_LOOK_AGAIN = 64
"""Steps after which one without prompts and drafts is taken, to see what that takes now."""
_LEAST = 1
_SLOWLY, _AT_ONCE = 0.2, 0.5
_LEAP = 8.0


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
        self.token_s: float | None = None
        """Seconds that a token beside those of generating sequences adds to a step; None while that is unknown."""
        self._step_s: dict[int, float] = {}
        self._looked: dict[int, int] = {}
        self._steps = 0

    def budget(self, generating: int, reading: int) -> int:
        """Prompt tokens that the next step may read, where so many sequences generate and so many are read."""
        if self.stretch is None or not generating:
            return self.prefill_tokens
        if self.looks(generating):
            return 0
        step_s = self.step_s(generating)
        if step_s is None or not self.token_s:
            return min(_FIRST, self.prefill_tokens)
        more = (self.stretch - 1) * max(1.0, reading**2 / generating)
        return max(min(_LEAST, self.prefill_tokens), min(self.prefill_tokens, int(more * step_s / self.token_s)))

    def looks(self, generating: int) -> bool:
        """Whether the next step is to be one without prompts and drafts, to see what that takes."""
        return self._steps - self._looked.get(generating.bit_length(), -_LOOK_AGAIN) >= _LOOK_AGAIN

    def observe(self, generating: int, other_tokens: int, seconds: float) -> None:
        """A step with so many generating sequences, and tokens of prompts or drafts beside theirs, took so long."""
        if not generating:
            return
        self._steps += 1
        if not other_tokens:
            size = generating.bit_length()
            self._looked[size] = self._steps
            self._step_s[size] = _toward(self._step_s.get(size), seconds, rise=_SLOWLY)
            return
        step_s = self.step_s(generating)
        if step_s is not None:
            token_s = max(seconds - step_s, 0.01 * seconds) / other_tokens
            # Each token costs more than the one before it, since it sees more: what rises is believed sooner.
            self.token_s = _toward(self.token_s, token_s, rise=_AT_ONCE)

    def step_s(self, generating: int) -> float | None:
        """Seconds of a step without other tokens, of the most similar number of sequences seen; None before any."""
        if not self._step_s:
            return None
        size = generating.bit_length()
        return self._step_s[min(self._step_s, key=lambda seen: abs(seen - size))]


def _toward(mean: float | None, value: float, *, rise: float) -> float:
    """A running mean that follows by the part `rise` upward, slowly downward, and no single outlier far."""
    if mean is None:
        return value
    return mean + (rise if value > mean else _SLOWLY) * (min(value, _LEAP * mean) - mean)
