"""The data page: HTML that needs nothing else."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from liuyi.core import pages
from liuyi.data.look import charts
from liuyi.data.look.find import Seen
from liuyi.data.look.report import LISTED, Report
from liuyi.data.look.survey import Tally

if TYPE_CHECKING:
    from jinja2 import Template

SNIPPET_CHARS = 600
"""Characters shown of a document."""


def page(report: Report) -> str:
    """The report as HTML."""
    return _template().render(report=report)


@cache
def _template() -> Template:
    environment = pages.environment("liuyi.data.look")
    environment.filters.update(mb=_megabytes, share=_share, signed=_signed, figure=_figure, snippet=_snippet)
    environment.globals.update(
        threshold_chart=charts.threshold_chart,
        small_histogram=charts.small_histogram,
        share_bar=charts.share_bar,
        ranked=_ranked,
        listed=LISTED,
    )
    return environment.get_template("data.html.jinja")


def _ranked(by_reason: dict[str, Tally]) -> list[tuple[str, Tally]]:
    """The reasons to drop documents, the most documents first."""
    dropped = [(reason, tally) for reason, tally in by_reason.items() if reason]
    return sorted(dropped, key=lambda item: (-item[1].documents, item[0]))


def _megabytes(size: int) -> str:
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _share(value: float) -> str:
    if value == 0:
        return "0 %"
    return f"{100 * value:.1f} %" if value >= 0.0095 else f"{100 * value:.2g} %"


def _signed(value: float) -> str:
    """A change of a share, in points."""
    text = f"{100 * value:+.2f}" if abs(value) < 0.1 else f"{100 * value:+.1f}"
    return "0" if value == 0 else text.replace("-", "−")


def _figure(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _snippet(seen: Seen) -> str:
    text = seen.masked_text.strip()
    return text if len(text) <= SNIPPET_CHARS else f"{text[:SNIPPET_CHARS]} …"
