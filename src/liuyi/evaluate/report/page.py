"""The report as one HTML page that needs nothing else: no script, no request, every text escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liuyi.core import pages
from liuyi.core.effect import Comparison
from liuyi.evaluate import figures
from liuyi.evaluate.report import svg
from liuyi.evaluate.report.gather import REPORT, Report, main_comparisons, shown_blocks

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.html` and `report.json`."""
    (folder / PAGE).write_text(page(report), encoding="utf-8")
    (folder / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def page(report: Report) -> str:
    """The report as HTML."""
    return _template().render(report=report)


@cache
def _template() -> Template:
    environment = pages.environment("liuyi.evaluate.report")
    environment.filters.update(show=figures.show, cell=_cell)
    environment.globals.update(
        main_comparisons=main_comparisons,
        shown_blocks=shown_blocks,
        interval_mark=svg.interval_mark,
        forests=_forests,
        bar_rows=svg.bar_rows,
        curves_chart=svg.curves_chart,
        is_number=_is_number,
        colours=svg.COLOURS,
    )
    return environment.get_template("report.html.jinja")


def _forests(comparisons: tuple[Comparison, ...]) -> list[tuple[str, list[tuple[Comparison, Any]]]]:
    """Comparisons with their intervals, those of one unit and direction on one scale: (what, rows)."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.unit, comparison.better), []).append(comparison)
    return [
        (_scale(unit, better), list(zip(group, svg.forest_rows(group), strict=True)))
        for (unit, better), group in groups.items()
    ]


def _scale(unit: str, better: str) -> str:
    what = "points" if unit == "%" else unit or "the metric"
    return f"Differences in {what}; {better} is better and drawn to the right"


def _cell(value: Any) -> str:
    return figures.number(float(value)) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
