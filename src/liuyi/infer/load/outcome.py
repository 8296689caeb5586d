"""What became of one request, and its latencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Status = Literal["ok", "rejected", "failed"]
WORST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request; times in seconds after the beginning of the measurement."""

    status: Status
    """`rejected`: the server refused at once, being full (429, 503); `failed`: no whole answer for another reason."""
    reason: str = ""
    """Why there is no whole answer."""
    due_s: float
    sent_s: float
    ended_s: float
    pieces_s: tuple[float, ...] = ()
    """When each piece of the answer came."""
    asked_prompt_tokens: int = 0
    """What the prompt was meant to have; 0 where nothing was meant."""
    prompt_tokens: int = 0
    """As the server says."""
    cached_tokens: int = 0
    """Of the prompt, as the server says."""
    completion_tokens: int = 0

    @property
    def lag_s(self) -> float:
        """How late the client sent it."""
        return self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first piece."""
        return self.pieces_s[0] - self.sent_s if self.pieces_s else None

    @property
    def e2e_s(self) -> float:
        """From sending to the end of the answer."""
        return self.ended_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """The mean time of a token after the first; None for an answer of one token."""
        if self.completion_tokens < 2 or len(self.pieces_s) < 2:
            return None
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.completion_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """The time between each piece and the one before it."""
        return [after - before for before, after in pairwise(self.pieces_s)]

    @property
    def worst_itl_s(self) -> float | None:
        """The mean of the longest tenth of these times (Mooncake's TBT), at least one of them."""
        gaps = sorted(self.itl_s, reverse=True)
        longest = gaps[: math.ceil(WORST_SHARE * len(gaps))]
        return sum(longest) / len(longest) if longest else None
