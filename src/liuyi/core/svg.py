"""Inline SVG: elements with every text escaped, and axes with round numbers; `templates/page.css` has the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup


def element(name: str, *inside: Markup | str, css: str = "", **attributes: object) -> Markup:
    """An SVG or HTML element; attributes and texts are escaped, and `_` in an attribute's name is `-`."""
    named = {"class": css, **attributes} if css else attributes
    said = [Markup(' {}="{}"').format(key.replace("_", "-"), value) for key, value in named.items()]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup().join(said), Markup().join(inside))


def strip(marks: Sequence[Markup], *, height: int, label: str, css: str) -> Markup:
    """Marks on a line as wide as its place, with a title for who points at it."""
    title = element("title", label)
    return element("svg", title, *marks, css=css, width="100%", height=height, role="img", aria_label=label)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 × a power of ten) from at or below `low` to at or above `high`; at least two."""
    span = high - low
    if span <= abs(low) * 1e-12 or not math.isfinite(span):
        span = abs(low) or 1.0
        low, high = low - span / 2, low + span / 2
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [index * size for index in range(first, max(last, first + 1) + 1)]


def tick(value: float) -> str:
    """A number beside an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def percent(share: float) -> str:
    """A share as a length in SVG."""
    return f"{100 * share:.2f}%"
