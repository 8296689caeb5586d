"""Service level objectives: latencies that an answer must keep to count as good."""

from __future__ import annotations

import math
from dataclasses import dataclass

from liuyi.core.errors import LiuyiError, did_you_mean
from liuyi.infer.load.outcome import Outcome

_MEASURES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "worst_itl_s", "e2e": "e2e_s"}


@dataclass(frozen=True)
class Slo:
    """Upper bounds in seconds by name: `ttft`, `tpot`, `itl` (the worst tenth) and `e2e`; none of them need be set."""

    bounds: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def parse(text: str) -> Slo:
        """`ttft=2,tpot=0.1` as bounds. Raises LiuyiError where it says something else."""
        bounds: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in _MEASURES:
                raise LiuyiError(f"'{name}' is no latency", where="--slo", hint=did_you_mean(name, _MEASURES))
            try:
                bounds[name] = float(value)
            except ValueError:
                bounds[name] = math.nan
            if not bounds[name] > 0:
                hint = f"such as {name}=0.5"
                raise LiuyiError(f"{name} needs a positive number of seconds, not '{value}'", where="--slo", hint=hint)
        return Slo(tuple(bounds.items()))

    def __str__(self) -> str:
        return ", ".join(f"{name} ≤ {bound:g} s" for name, bound in self.bounds)

    def kept(self, outcome: Outcome) -> bool:
        """Whether the answer is whole and within all bounds; what an answer has not (one token has no TPOT) is kept."""
        if outcome.status != "ok":
            return False
        measured = ((getattr(outcome, _MEASURES[name]), bound) for name, bound in self.bounds)
        return all(value is None or value <= bound for value, bound in measured)
