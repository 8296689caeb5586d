"""What synthesis cost and what it gave: asked, answered, kept, dropped by reason, tokens, price, speed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liuyi.core.effect import Bars, Effect, Sample, Samples, Table
from liuyi.data.synthesis.ask import Answer
from liuyi.data.synthesis.queue import Faults

REPORT = "synthesis.json"
_REASONS_SHOWN = 8


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in whatever currency the owner counts."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0


@dataclass
class Tally:
    """Counts of one step. Those of requests and rows depend on nothing but the answers, and go into the artifact."""

    asked: int = 0
    answered: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    """Answers whose tokens the endpoint did not count."""
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    faults: Faults = field(default_factory=Faults)
    seconds: float = 0.0
    new_tokens_out: int = 0
    """Tokens of answers that came in these seconds."""
    spent: bool = False

    def count(self, answer: Answer | None) -> None:
        """Count a request and what came of it."""
        self.asked += 1
        if answer is not None:
            self.answered += 1
            self.tokens_in += answer.tokens_in or 0
            self.tokens_out += answer.tokens_out or 0
            self.uncounted += answer.tokens_in is None or answer.tokens_out is None

    def price(self, prices: Prices) -> float:
        """What the counted tokens cost."""
        return (self.tokens_in * prices.tokens_in + self.tokens_out * prices.tokens_out) / 1e6

    def figures(self, prices: Prices | None) -> dict[str, float]:
        """For the artifact: the same whenever the answers are."""
        names = ("asked", "answered", "tokens_in", "tokens_out", "kept")
        counts = {name: float(getattr(self, name)) for name in names} | {"dropped": float(self.dropped.total())}
        return counts | ({"price": self.price(prices)} if prices else {})

    def summary(self, prices: Prices | None) -> str:
        """Lines for people."""
        asked = f"{self.asked:,} asked, {self.answered:,} answered"
        lines = [f"{asked}, {self.kept:,} rows kept, {self.dropped.total():,} dropped"]
        lines += [f"  {count:,} × {reason}" for reason, count in self.dropped.most_common(_REASONS_SHOWN)]
        cost = f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out"
        if self.uncounted:
            cost += f" ({self.uncounted:,} answers came without a count)"
        if prices:
            cost += f", price {self.price(prices):,.4g}"
        if self.new_tokens_out:
            cost += f"; {self.new_tokens_out / max(self.seconds, 1e-3):,.0f} tokens/s"
        lines.append(cost)
        for what, counts in (("failed tries", self.faults.tries), ("never answered", self.faults.given_up)):
            if counts:
                said = ", ".join(f"{count:,} × {reason}" for reason, count in counts.most_common())
                lines.append(f"{what}: {said}")
        if self.spent:
            lines.append("stopped at the limit of max_requests or max_tokens_out")
        return "\n".join(lines)

    def save(self, folder: Path, generator: str, model: str, prices: Prices | None, samples: Iterable[Sample]) -> None:
        """Write `synthesis.json` and the effect that the report shows."""
        figures = self.figures(prices)
        about: dict[str, Any] = {"generator": generator, "model": model, **figures}
        about["dropped_by_reason"] = dict(sorted(self.dropped.items()))
        (folder / REPORT).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        share = self.kept / max(1, self.kept + self.dropped.total())
        blocks: list[Any] = [
            Table(
                title="Cost and yield",
                columns=("figure", "value"),
                rows=tuple((name.replace("_", " "), value) for name, value in figures.items()),
            )
        ]
        if self.dropped:
            bars = tuple((reason, float(count)) for reason, count in self.dropped.most_common())
            blocks.append(Bars(title="Dropped, by reason", bars=bars))
        shown = tuple(samples)
        if shown:
            blocks.append(Samples(title="Rows", samples=shown))
        Effect(
            stage="data",
            title=f"Synthesis: {generator}",
            summary=f"{self.kept:,} rows from {self.answered:,} answers of {model}; {share:.0%} of candidates stayed.",
            blocks=tuple(blocks),
        ).save(folder)
