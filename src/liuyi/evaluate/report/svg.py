"""Charts as inline SVG: intervals, bars, curves. They follow the page's colours, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from liuyi.core.effect import Bars, Comparison, Curves, Series
from liuyi.core.svg import element, percent, strip, tick, ticks
from liuyi.evaluate.figures import is_margin_test, number, show
from liuyi.evaluate.stats import is_proven

COLOURS = 6
"""Series colours that the style sheet defines, `c0` … `c5`."""
_WIDTH, _HEIGHT = 680, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42


def interval_mark(comparison: Comparison) -> Markup:
    """A small interval beside the zero line; improvement lies to the right, whichever way the figure moves."""
    low, delta, high = _towards_better(comparison)
    if not (math.isfinite(low) and math.isfinite(high)):
        return element("span", "–", css="muted")
    reach = max(abs(low), abs(high), 1e-300) * 1.12
    shown = show(comparison)
    label = f"{shown.change}, {shown.interval}"
    return strip(_interval(low, delta, high, -reach, reach, comparison), height=22, label=label, css="mark")


def forest_rows(comparisons: Sequence[Comparison]) -> list[Markup]:
    """One interval each on a scale that they share; improvement lies to the right."""
    spans = [_towards_better(comparison) for comparison in comparisons]
    ends = [0.0, *(value for span in spans for value in span if math.isfinite(value))]
    pad = (max(ends) - min(ends) or 1.0) * 0.06
    start, end = min(ends) - pad, max(ends) + pad
    rows = []
    for comparison, (low, delta, high) in zip(comparisons, spans, strict=True):
        marks = _interval(low, delta, high, start, end, comparison)
        label = show(comparison).interval
        rows.append(strip(marks, height=26, label=label, css="forest"))
    return rows


def bar_rows(bars: Bars) -> list[tuple[str, str, Markup]]:
    """(label, value, bar) for each bar; negative values grow to the left of zero."""
    values = [value for _, value in bars.bars if math.isfinite(value)]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    span = high - low or 1.0
    rows = []
    for label, value in bars.bars:
        shown = value if math.isfinite(value) else 0.0
        start, end = (min(shown, 0.0) - low) / span, (max(shown, 0.0) - low) / span
        marks = [element("rect", css="bar", x=percent(start), y=3, width=percent(end - start), height=12, rx=2)]
        if low < 0:
            zero = percent(-low / span)
            marks.append(element("line", css="zero", x1=zero, x2=zero, y1=0, y2=18))
        text = number(value, bars.unit)
        rows.append((label, text, strip(marks, height=18, label=f"{label}: {text}", css="track")))
    return rows


def curves_chart(curves: Curves) -> Markup:
    """Lines over a shared x axis, with ticks at round numbers."""
    series = [(s.name, _finite_points(s.x, s.y)) for s in curves.series]
    bands = [
        [*_finite_points(s.x, s.high), *reversed(_finite_points(s.x, s.low))] if s.high else [] for s in curves.series
    ]
    points = [point for line in (*(line for _, line in series), *bands) for point in line]
    if not points:
        return element("p", "There are no points.", css="muted")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-12)
    y_ticks = ticks(min(ys), max(ys), 5)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT), 1)

    def down(y: float) -> float:
        return round(_TOP + (y_high - y) / (y_high - y_low) * (bottom - _TOP), 1)

    parts = []
    for y in y_ticks:
        parts.append(element("line", css="grid", x1=_LEFT, x2=right, y1=down(y), y2=down(y)))
        parts.append(element("text", tick(y), css="tick", x=_LEFT - 8, y=down(y) + 4, text_anchor="end"))
    for x in ticks(x_low, x_high, 7):
        if x_low <= x <= x_high:
            parts.append(element("text", tick(x), css="tick", x=across(x), y=bottom + 18, text_anchor="middle"))
    for index, band in enumerate(bands):
        if band:
            path = " ".join(f"{across(x)},{down(y)}" for x, y in band)
            parts.append(element("polygon", css=f"band c{index % COLOURS}", points=path))
    for mark in curves.marks:
        if x_low <= mark.x <= x_high:
            at, title = across(mark.x), element("title", f"{mark.name} at {tick(mark.x)}")
            parts.append(element("line", title, css="event", x1=at, x2=at, y1=_TOP, y2=bottom))
    for index, (name, line) in enumerate(series):
        if curves.series[index].dots:
            parts += [element("circle", css=f"dot c{index % COLOURS}", cx=across(x), cy=down(y), r=3) for x, y in line]
            continue
        path = " ".join(f"{across(x)},{down(y)}" for x, y in line)
        parts.append(
            element("polyline", element("title", name), css=_line_css(curves.series[index], index), points=path)
        )
    middle = (_LEFT + right) / 2
    parts.append(element("text", curves.x_label, css="axis", x=middle, y=_HEIGHT - 6, text_anchor="middle"))
    label = f"{curves.title}: {curves.y_label} over {curves.x_label}"
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return element("svg", *parts, css="chart", viewBox=box, role="img", aria_label=label)


def _line_css(series: Series, index: int) -> str:
    return f"line c{index % COLOURS}{' faint' if series.faint else ''}"


def _interval(low: float, delta: float, high: float, start: float, end: float, comparison: Comparison) -> list[Markup]:
    def at(value: float) -> str:
        return percent((min(max(value, start), end) - start) / (end - start))

    css = "unsure" if not _is_shown_as_found(comparison) else "good" if low > 0 else "bad"
    marks = [element("line", css="zero", x1=at(0), x2=at(0), y1=0, y2="100%")]
    if math.isfinite(low) and math.isfinite(high):
        marks.append(element("line", css=f"interval {css}", x1=at(low), x2=at(high), y1="50%", y2="50%"))
        for stop in (low, high):
            marks.append(element("line", css=f"interval {css}", x1=at(stop), x2=at(stop), y1="32%", y2="68%"))
    marks.append(element("circle", css=f"point {css}", cx=at(delta), cy="50%", r=4))
    return marks


def _is_shown_as_found(comparison: Comparison) -> bool:
    """A margin's p-value says nothing about zero: there the interval alone decides the colour."""
    return is_proven(comparison.model_copy(update={"p_value": None}) if is_margin_test(comparison) else comparison)


def _towards_better(comparison: Comparison) -> tuple[float, float, float]:
    """(low, delta, high) with improvement above zero."""
    if comparison.better == "higher":
        return comparison.low, comparison.delta, comparison.high
    return -comparison.high, -comparison.delta, -comparison.low


def _finite_points(x: Iterable[float], y: Iterable[float]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
