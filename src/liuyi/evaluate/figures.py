"""Figures as people read them: percentages, points, intervals, p-values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from liuyi.core.effect import Comparison

NO_INTERVAL = "no interval: too few items"


@dataclass(frozen=True)
class Shown:
    """A comparison in words, with as many digits as its interval bears."""

    before: str
    after: str
    change: str
    interval: str
    p: str
    counts: str
    detectable: str
    """Empty where the test has no such figure."""


def number(value: float, unit: str = "", decimals: int | None = None) -> str:
    """`0.8125` with unit `%` → `81.2 %`; `1234567` → `1,234,567`; `2.03391` with `bits/byte` → `2.034 bits/byte`."""
    return _with_unit(_plain(value, unit, decimals), unit)


def change(value: float, unit: str = "", decimals: int | None = None) -> str:
    """A difference with its sign; of percentages in points: `+12.3 points`."""
    return _with_unit(_signed(value, unit, decimals), _difference_unit(unit))


def extent(value: float, unit: str = "", decimals: int | None = None) -> str:
    """The size of a difference, without a sign; of percentages in points: `2.0 points`."""
    return _with_unit(_plain(abs(value), unit, decimals), _difference_unit(unit))


def interval(low: float, high: float, unit: str = "", decimals: int | None = None) -> str:
    """`+10.1 … +14.6`, in points for percentages; an interval that could not be made is said to be missing."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NO_INTERVAL
    return f"{_signed(low, unit, decimals)} … {_signed(high, unit, decimals)}"


def p_text(p: float | None) -> str:
    """`0.032`, `< 0.0001`, or a dash where nothing was tested."""
    if p is None:
        return "–"
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def show(comparison: Comparison) -> Shown:
    """Every figure of a comparison, as the terminal and the page show it."""
    c = comparison
    decimals = _decimals(c)
    p = c.p_adjusted if c.p_adjusted is not None else c.p_value
    items = f"{c.items:,} item{'' if c.items == 1 else 's'}"
    clusters = f"{c.clusters:,} cluster{'' if c.clusters == 1 else 's'}"
    return Shown(
        before=number(c.before, c.unit if c.unit == "%" else "", decimals),
        after=number(c.after, c.unit, decimals),
        change=change(c.delta, c.unit, decimals),
        interval=interval(c.low, c.high, c.unit, decimals),
        p=p_text(p),
        counts=items if c.clusters == c.items else f"{items} in {clusters}",
        detectable="" if c.minimum_detectable is None else extent(c.minimum_detectable, c.unit, decimals),
    )


def sentence(comparison: Comparison) -> str:
    """One comparison in a sentence, with all that is needed to judge it."""
    shown = show(comparison)
    sure = shown.interval
    if sure != NO_INTERVAL:
        sure = f"{100 * comparison.level:g} % interval {sure}"
    tested = "" if shown.p == "–" else f", p {shown.p}" if shown.p.startswith("<") else f", p = {shown.p}"
    if is_margin_test(comparison):
        tested += f" for {comparison.test.partition(':')[0]}"
    moved = f"{comparison.metric}: {shown.before} → {shown.after}"
    return f"{moved}, {shown.change} ({sure}{tested}; {shown.counts})"


def is_margin_test(comparison: Comparison) -> bool:
    """Whether the p-value answers "no worse than a margin?" rather than "any difference?"."""
    return comparison.test.startswith("no worse than ")


def _decimals(comparison: Comparison) -> int | None:
    """Digits after the point that the interval bears: two of its half width; None where there is no such width."""
    half = (comparison.high - comparison.low) / 2
    if comparison.unit == "%" or not math.isfinite(half) or half <= 0:
        return None
    return max(0, min(8, 1 - math.floor(math.log10(half))))


def _plain(value: float, unit: str, decimals: int | None = None) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if unit == "%":
        text = f"{100 * value:.1f}"
    elif decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 10_000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def _signed(value: float, unit: str, decimals: int | None = None) -> str:
    text = _plain(value, unit, decimals)
    return text if text.startswith("−") or not text.strip("0.,") else f"+{text}"


def _difference_unit(unit: str) -> str:
    return "points" if unit == "%" else unit


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text
