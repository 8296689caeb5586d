"""The report in a terminal: the summary table, then each stage in a few lines, or with all of its tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Bars, Comparison, Curves, Effect, Table
from liuyi.evaluate import figures
from liuyi.evaluate.report.gather import Report, main_comparisons, read_report, shown_blocks

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DECISION_STYLES = {"promoted": "green", "held": "yellow", "reverted": "red"}
_MOST_ROWS = 12
_BAR_CELLS = 28
_SPARKS = "▁▂▃▄▅▆▇█"


def print_report(report: Report | Artifact, console: Console, *, details: bool = False) -> None:
    """Print a report, or the one that an artifact of kind `report` holds; `details` adds bars, tables and curves."""
    from rich.rule import Rule
    from rich.text import Text

    if isinstance(report, Artifact):
        report = read_report(report.path)
    console.print(Text.assemble((report.title, "bold"), "  ", (report.headline(), "dim")))
    console.print()
    console.print(_summary(report))
    for stage, sections in report.stages():
        console.print()
        console.print(Rule(Text(stage, style="bold"), align="left", style="dim"))
        for section in sections:
            _print_effect(section.effect, console, details)


def _summary(report: Report) -> RenderableType:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "question", "before → after", "difference", "interval", "p", "n", "decision"):
        table.add_column(name, justify="right" if name in ("p", "n") else "left", overflow="fold")
    for section in report.sections:
        effect = section.effect
        compared = main_comparisons(effect)
        for index, c in enumerate(compared):
            decision = effect.decision or ""
            shown = figures.show(c)
            table.add_row(
                Text(effect.stage if index == 0 else ""),
                Text(_question(c)),
                Text(f"{shown.before} → {shown.after}"),
                Text(shown.change),
                Text(shown.interval),
                Text(shown.p),
                Text(f"{c.items:,}"),
                Text(decision if index == 0 else "", style=DECISION_STYLES.get(decision, "")),
            )
        if not compared:
            table.add_row(Text(effect.stage), Text(effect.title), *[""] * 5, Text(effect.decision or ""))
    return table


def _question(comparison: Comparison) -> str:
    names = _names(comparison)
    return f"{comparison.metric}: {names}" if names else comparison.metric


def _names(comparison: Comparison) -> str:
    """What is compared with what; empty where it is only before and after."""
    named = (comparison.before_name, comparison.after_name) != ("before", "after")
    return f"{comparison.before_name} → {comparison.after_name}" if named else ""


def _print_effect(effect: Effect, console: Console, details: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    head = Text(effect.title, style="bold")
    if effect.decision:
        head.append(f"  {effect.decision}", style=DECISION_STYLES[effect.decision])
    console.print(head)
    console.print(Padding(Text(effect.summary), (0, 0, 0, 2)))
    main = main_comparisons(effect)
    for comparison in effect.comparisons:
        if comparison not in main:
            parts = (comparison.subset, _names(comparison), figures.sentence(comparison))
            console.print(Padding(Text(" · ".join(filter(None, parts)), style="dim"), (0, 0, 0, 2)))
    for block in shown_blocks(effect) if details else ():
        shown = _block(block)
        if shown is not None:
            console.print(Padding(shown, (1, 0, 0, 2)))


def _block(block: object) -> RenderableType | None:
    if isinstance(block, Bars):
        return _bars(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Curves):
        return _sparks(block)
    return None


def _bars(bars: Bars) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    most = max((abs(value) for _, value in bars.bars if math.isfinite(value)), default=1.0) or 1.0
    table = RichTable(title=Text(bars.title), title_justify="left", title_style="", box=None, show_header=False)
    for label, value in bars.bars[:_MOST_ROWS]:
        length = _BAR_CELLS * abs(value) / most if math.isfinite(value) else 0
        bar = "█" * int(length) + ("▌" if length % 1 >= 0.5 else "")
        table.add_row(Text(label), Text(figures.number(value, bars.unit)), Text(bar, style="cyan"))
    return table


def _table(block: Table) -> RenderableType:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    hidden = len(block.rows) - _MOST_ROWS
    note = f"and {hidden} more rows" if hidden > 0 else block.note
    table = RichTable(
        title=Text(block.title), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.caption, table.caption_justify = (Text(note) if note else None), "left"
    for index, column in enumerate(block.columns):
        numeric = all(isinstance(row[index], int | float) for row in block.rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in block.rows[:_MOST_ROWS]:
        table.add_row(*(Text(figures.number(v) if isinstance(v, int | float) else str(v)) for v in row))
    return table


def _sparks(curves: Curves) -> RenderableType:
    from rich.text import Text

    lines = [Text(curves.title)]
    for series in curves.series:
        values = [y for y in series.y if math.isfinite(y)]
        if values and not (series.dots or series.faint):
            ends = f"{figures.number(values[0])} → {figures.number(values[-1])}"
            lines.append(Text.assemble(("  " + spark(values), "cyan"), f"  {series.name} {ends}"))
    return Text("\n").join(lines)


def spark(values: list[float], width: int = 40) -> str:
    """A line of blocks, each the mean of its stretch of the values."""
    size = max(1, -(-len(values) // width))
    means = [sum(values[at : at + size]) / len(values[at : at + size]) for at in range(0, len(values), size)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(_SPARKS[min(7, int((value - low) / span * 8))] for value in means)
