"""The charts of the data page as inline SVG: histograms with a threshold, what moving it would keep, and bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from liuyi.core.svg import element, percent, strip, tick, ticks
from liuyi.data.look.figures import Floats, Histogram, Threshold

_WIDTH, _LEFT, _RIGHT, _TOP = 640, 52, 12, 10
_BARS, _GAP, _CURVE, _BOTTOM = 130, 14, 70, 34
_SMALL_WIDTH, _SMALL_HEIGHT = 300, 86
_STATES = ("kept", "here", "elsewhere")

Across = Callable[[float], float]


def threshold_chart(threshold: Threshold) -> Markup:
    """The histogram of what a threshold judges; below it, on the same axis, the share kept if it stood there."""
    histogram = threshold.histogram
    right, top = _WIDTH - _RIGHT, _TOP + _BARS
    across = _axis(histogram.edges, histogram.is_log, _LEFT, right)
    low, bottom = top + _GAP, top + _GAP + _CURVE
    line = across(threshold.measure.limit)
    parts = [
        *_columns(histogram, across, top, _BARS),
        *_counts(histogram, top),
        *_shares(low, bottom, right),
        _curve(threshold, across, low, bottom),
        *_below(histogram, across, bottom + 18),
        element("line", css="limit", x1=line, x2=line, y1=_TOP - 4, y2=bottom),
    ]
    label = f"{threshold.measure.threshold}: documents by value, and the share kept by each limit"
    box = f"0 0 {_WIDTH} {bottom + _BOTTOM}"
    return element("svg", element("title", label), *parts, css="chart", viewBox=box, role="img", aria_label=label)


def small_histogram(histogram: Histogram, label: str) -> Markup:
    """A histogram without a threshold."""
    across = _axis(histogram.edges, histogram.is_log, 4, _SMALL_WIDTH - 4)
    top = _SMALL_HEIGHT - 20
    parts = [*_columns(histogram, across, top, top - 6), *_below(histogram, across, _SMALL_HEIGHT - 4)]
    box = f"0 0 {_SMALL_WIDTH} {_SMALL_HEIGHT}"
    return element("svg", element("title", label), *parts, css="chart", viewBox=box, role="img", aria_label=label)


def share_bar(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Shares of a whole side by side, each with the class of its colour."""
    marks, start = [], 0.0
    for css, share in parts:
        marks.append(element("rect", css=css, x=percent(start), y=3, width=percent(share), height=12))
        start += share
    return strip(marks, height=18, label=label, css="track")


def _axis(edges: Floats, is_log: bool, left: float, right: float) -> Across:
    low, high = (math.log(float(edge)) if is_log else float(edge) for edge in (edges[0], edges[-1]))

    def across(value: float) -> float:
        place = math.log(max(value, 1e-12)) if is_log else value
        share = min(1.0, max(0.0, (place - low) / (high - low)))
        return round(left + share * (right - left), 1)

    return across


def _columns(histogram: Histogram, across: Across, bottom: float, height: float) -> list[Markup]:
    """A column a bin, as high as the logarithm of its documents, divided by what becomes of them."""
    states = np.array([histogram.kept, histogram.dropped_for_it, histogram.dropped_otherwise])
    totals = states.sum(axis=0)
    most = math.log1p(float(totals.max(initial=1)))
    found = []
    for number in np.flatnonzero(totals).tolist():
        left, right = across(float(histogram.edges[number])), across(float(histogram.edges[number + 1]))
        whole, at = height * math.log1p(int(totals[number])) / most, bottom
        said = ", ".join(f"{count:,} {_SAID[state]}" for state, count in _named(states[:, number]) if count)
        rects = []
        for state, count in _named(states[:, number]):
            size = round(whole * count / int(totals[number]), 1)
            at -= size
            if size:
                width = max(0.8, round(right - left - 0.8, 1))
                rects.append(element("rect", css=state, x=left, y=round(at, 1), width=width, height=size))
        value = f"{tick(_rounded(histogram.edges[number]))} … {tick(_rounded(histogram.edges[number + 1]))}"
        found.append(element("g", element("title", f"{value}: {said}"), *rects))
    return found


_SAID = {"kept": "kept", "here": "dropped by this rule", "elsewhere": "dropped by others"}


def _named(counts: NDArray[np.int64]) -> list[tuple[str, int]]:
    return list(zip(_STATES, counts.tolist(), strict=True))


def _counts(histogram: Histogram, bottom: float) -> list[Markup]:
    """The logarithmic axis of documents, at powers of ten."""
    most = float((histogram.kept + histogram.dropped_for_it + histogram.dropped_otherwise).max(initial=1))
    parts = []
    for power in range(0, int(math.log10(max(most, 1))) + 1):
        y = round(bottom - _BARS * math.log1p(10**power) / math.log1p(most), 1)
        if y >= _TOP - 1:
            parts.append(element("line", css="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
            parts.append(element("text", f"{10**power:,}", css="tick", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    return parts


def _shares(top: float, bottom: float, right: float) -> list[Markup]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = round(bottom - share * (bottom - top), 1)
        parts.append(element("line", css="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(element("text", f"{share:.0%}", css="tick", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    return parts


def _curve(threshold: Threshold, across: Across, top: float, bottom: float) -> Markup:
    points = " ".join(
        f"{across(float(limit))},{bottom - float(share) * (bottom - top):.1f}"
        for limit, share in zip(threshold.limits, threshold.kept_at, strict=True)
    )
    return element("polyline", css="line kept-at", points=points)


def _below(histogram: Histogram, across: Across, y: float) -> list[Markup]:
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    places = _powers(low, high) if histogram.is_log else ticks(low, high, 6)
    ends = {across(low): "start", across(high): "end"}
    return [
        element("text", tick(place), css="tick", x=across(place), y=y, text_anchor=ends.get(across(place), "middle"))
        for place in places
        if low * (1 - 1e-9) <= place <= high * (1 + 1e-9)
    ]


def _powers(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def _rounded(value: float) -> float:
    return float(f"{float(value):.4g}")
