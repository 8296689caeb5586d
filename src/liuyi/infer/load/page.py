"""A measurement as one HTML page with its charts inside: nothing is fetched when it is opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.summary import Latency, Summary

Line = Sequence[tuple[float, float]]
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 260, 62, 12, 10, 40
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead { border-bottom: 1px solid currentColor; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-weight: 600; }
svg text { fill: currentColor; font-size: 11px; } svg .axis { stroke: currentColor; opacity: .25; }
.key span { margin-right: 1.2rem; } .scroll { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Point:
    """One load and what became of it."""

    summary: Summary
    outcomes: Sequence[Outcome]


def page(title: str, facts: Sequence[str], points: Sequence[Point], table: Sequence[Sequence[str]]) -> str:
    """The page: `facts` under the title, `table` with its head in the first row, and the charts."""
    charts = [
        _shares("Time to first token", points, lambda outcome: [outcome.ttft_s]),
        _shares("Time per output token", points, lambda outcome: [outcome.tpot_s]),
        _shares("Inter-token latency", points, lambda outcome: list(outcome.itl_s)),
        _shares("End to end", points, lambda outcome: [outcome.e2e_s]),
    ]
    if len(points) > 1:
        charts = [_against_throughput(points), *charts]
    head, *rows = [[escape(cell) for cell in row] for row in table]
    key = "".join(
        f'<span><b style="color:{_colour(at)}">▬</b> {escape(point.summary.label)}</span>'
        for at, point in enumerate(points)
    )
    return "\n".join(
        (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
            f"<p>{'<br>'.join(map(escape, facts))}</p>",
            '<div class="scroll"><table><thead><tr>' + "".join(f"<th>{cell}</th>" for cell in head),
            "</tr></thead><tbody>",
            *("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows),
            f'</tbody></table></div><p class="key">{key}</p><div class="charts">',
            *charts,
            "</div></html>\n",
        )
    )


def _against_throughput(points: Sequence[Point]) -> str:
    def line(value: Callable[[Latency], float]) -> Line:
        met = [(point.summary.output_tokens_per_s, point.summary.e2e) for point in points]
        return sorted((rate, value(latency)) for rate, latency in met if latency is not None)

    lines = [line(lambda latency: latency.p50_s), line(lambda latency: latency.p99_s)]
    return _chart("End to end, p50 and p99, against throughput", lines, "output tokens/s", "s")


def _shares(title: str, points: Sequence[Point], values: Callable[[Outcome], list[float | None]]) -> str:
    """For each load, which share of the measured values lies below each."""
    lines = []
    for point in points:
        measured = (values(outcome) for outcome in point.outcomes if outcome.status == "ok")
        known = sorted(value for each in measured for value in each if value is not None)
        step = max(1, len(known) // 400)
        lines.append([(value, (at + 1) / len(known)) for at, value in enumerate(known) if not (at + 1) % step])
    return _chart(title, lines, "s", "share")


def _chart(title: str, lines: Sequence[Line], x_name: str, y_name: str) -> str:
    spots = [spot for line in lines for spot in line]
    if not spots:
        return ""
    x_ticks, y_ticks = _ticks(max(x for x, _ in spots)), _ticks(max(y for _, y in spots))

    def place(x: float, y: float) -> tuple[float, float]:
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + x / x_ticks[-1] * wide, _TOP + (1 - y / y_ticks[-1]) * high

    marks = []
    for tick in x_ticks:
        x, bottom = place(tick, 0)
        marks.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        left, y = place(0, tick)
        marks.append(f'<line class="axis" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_name)}</text>')
    marks.append(f'<text x="4" y="{_HEIGHT - 6}">{escape(y_name)}</text>')
    for at, line in enumerate(lines):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*spot) for spot in line))
        marks.append(f'<polyline points="{path}" fill="none" stroke="{_colour(at)}" stroke-width="1.8"/>')
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{"".join(marks)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to just beyond `highest`, about five of them."""
    if highest <= 0:
        return [0.0, 1.0]
    size = 10 ** math.floor(math.log10(highest / 5))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor * 5 >= highest)
    return [step * at for at in range(math.ceil(highest / step - 1e-9) + 1)]
