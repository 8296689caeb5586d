"""Watching a run in the terminal: finished steps as lines, the current one with its bar, figures and time left."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import (
    EXIT_CANCELLED,
    EXIT_ERROR,
    console,
    error_console,
    figure_text,
    print_error,
    seconds_text,
    size_text,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from liuyi.core.records import Run
    from liuyi.core.runner.launch import Attached

MARKS = {"done": ("✓", "green"), "cached": ("=", "cyan"), "failed": ("✗", "bold red"), "cancelled": ("–", "yellow")}
PLAIN_PROGRESS_S = 30.0
"""How often progress is told where the output is not a terminal."""
MAX_FIGURES = 4
BAR_CELLS, LEAST_BAR_CELLS = 24, 4
LEAST_NAME = 8
"""Characters of a step's name that are shown where there is little room."""
SPEEDS = {
    "tok_s": "{} tok/s",
    "learnt_tok_s": "learnt {} tok/s",
    "pairs_s": "{} pairs/s",
    "answers_s": "{} answers/s",
}


class _Interrupted(Exception):
    """The terminal, or whoever started this process, wants it to end."""


def watch(attached: Attached) -> int:
    """Follow a run to its end and tell how it went. Gives the exit status of the command.

    Ctrl-C asks whether to detach or to cancel. Where nobody can be asked, Ctrl-C cancels, and so does SIGTERM
    anywhere; a terminal that is closed, or `kill -9`, leaves the run to its worker.
    """
    while True:
        try:
            with _sigterm_interrupts():
                _follow(attached)
            return _tell_end(attached)
        except (_Interrupted, KeyboardInterrupt) as asked:
            choice = _ask() if isinstance(asked, KeyboardInterrupt) else "cancel"
            if choice == "detach":
                console().print(f"run {attached.run_id} goes on; 'liuyi resume {attached.run_id}' watches it again")
                return 0
            if choice == "cancel":
                return _cancel(attached)


def _cancel(attached: Attached) -> int:
    from liuyi.core.errors import LedgerError
    from liuyi.core.runner.launch import cancel_run

    error_console().print(f"cancelling run {attached.run_id} …")
    try:
        cancel_run(attached.home, attached.run_id)
    except LedgerError as error:
        if attached.is_active():
            raise
        error_console().print(error.message)
    error_console().print(f"cancelled; 'liuyi resume {attached.run_id}' goes on from here")
    return EXIT_CANCELLED


def _ask() -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "cancel"
    choices = {"d": "detach", "c": "cancel", "w": "watch"}
    try:
        answer = click.prompt(
            "\n[d]etach and leave it running, [c]ancel it, or go on [w]atching",
            type=click.Choice(list(choices)),
            default="d",
            show_choices=False,
        )
    except click.Abort:
        return "detach"
    return choices[answer]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(attached: Attached) -> None:
    view = _View(console())
    with view.live():
        for event in attached.events():
            if event is not None:
                view.take(event)


@dataclass
class _Current:
    """The step that runs now, and how fast it goes."""

    name: str
    place: str
    started: float
    first: tuple[float, float] | None = None
    latest: Mapping[str, Any] = field(default_factory=dict)

    def progress(self, event: Mapping[str, Any]) -> None:
        self.first = self.first or (event["time"], event["done"])
        self.latest = event

    def left_s(self) -> float | None:
        """How long the rest will take at the pace since the first news; None while there is no pace."""
        if self.first is None or not self.latest or self.latest["done"] <= self.first[1]:
            return None
        pace: float = (self.latest["time"] - self.first[0]) / (self.latest["done"] - self.first[1])
        left: float = pace * (self.latest["total"] - self.latest["done"]) - (time.time() - self.latest["time"])
        return max(0.0, left)


class _View:
    def __init__(self, out: Console) -> None:
        self.out = out
        self.current: _Current | None = None
        self.told = time.monotonic()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the current step drawn below the lines, if this is a terminal."""
        if not self.out.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self.bar, console=self.out, refresh_per_second=8, transient=True):
            yield

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self.step(event)
        elif kind == "log":
            self.line(f"        {event['step']}: {event['text']}", style="dim")
        elif kind == "progress" and self.current:
            self.current.progress(event)
            if not self.out.is_terminal and time.monotonic() - self.told > PLAIN_PROGRESS_S:
                self.line(f"        {self.current.name}: {self.shown()}")

    def step(self, event: Mapping[str, Any]) -> None:
        place = f"{event['position']:>{len(str(event['steps']))}}/{event['steps']}"
        status = event["status"]
        if status == "running":
            self.current = _Current(event["step"], place, event["time"])
        elif status == "waiting":
            self.current = _Current(event["step"], place, event["time"])
            holder = event["waiting_for"]
            self.line(f"        {event['step']}: run {holder} does the same work; waiting for it", style="yellow")
        else:
            self.current = None
            self.line(_finished_line(event, place))

    def line(self, text: str | Text, style: str = "") -> None:
        from rich.text import Text

        self.told = time.monotonic()
        line = Text(text, style=style) if isinstance(text, str) else text
        if self.out.is_terminal:
            line.truncate(self.out.width, overflow="ellipsis")
        self.out.print(line, soft_wrap=True)

    def bar(self) -> RenderableType:
        """The step with its bar; figures that do not fit beside it go below."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        if self.current is None:
            return Text("")
        figures, beside, below = self.figures(), self.shown(), []
        place, pace = self.current.place, self.pace()
        name = shortened(self.current.name, self.out.width - len(place) - len(pace) - LEAST_BAR_CELLS - 6)
        head = len(place) + len(name) + 6
        if figures and head + BAR_CELLS + len(beside) > self.out.width:
            beside, below = pace, joined(figures, self.out.width - 2)
        cells: list[RenderableType] = [Spinner("dots"), Text(place, style="dim"), Text(name)]
        latest = self.current.latest
        if latest:
            room = min(BAR_CELLS, max(LEAST_BAR_CELLS, self.out.width - head - len(beside)))
            cells.append(ProgressBar(total=max(latest["total"], 1e-9), completed=latest["done"], width=room))
        row = Table.grid(padding=(0, 1, 0, 0))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(*cells, Text(beside))
        return Group(row, *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in below))

    def shown(self) -> str:
        """`180/400 steps · loss 2.31 · 1 min 20 s left`, or how long the step has run."""
        return self.pace(self.figures())

    def pace(self, figures: Sequence[str] = ()) -> str:
        """How far the step is, figures, and how long the rest will take."""
        assert self.current is not None
        latest = self.current.latest
        if not latest:
            return seconds_text(max(0.0, time.time() - self.current.started))
        unit = f" {latest['unit']}" if latest["unit"] else ""
        parts = [f"{figure_text(latest['done'])}/{figure_text(latest['total'])}{unit}", *figures]
        left = self.current.left_s()
        return " · ".join([*parts, f"{seconds_text(left)} left"] if left is not None else parts)

    def figures(self) -> list[str]:
        """What the step shows of itself, in words."""
        latest = self.current.latest if self.current else {}
        return [shown_figure(name, value) for name, value in latest.get("shown", {}).items() if value is not None]


def shortened(name: str, width: int) -> str:
    """The name, cut to the width, but to no less than its first characters."""
    width = max(width, LEAST_NAME)
    return name if len(name) <= width else name[: width - 1] + "…"


def joined(parts: Sequence[str], width: int, between: str = " · ") -> list[str]:
    """The parts on as few lines as they fit on."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def shown_figure(name: str, value: float) -> str:
    """A figure in words, by what its name says that it is.

    `tok_s` → `9,120 tok/s`, `bf16_mfu` → `61% of bf16 peak`, `memory_bytes` → `1.2 GiB`, others as `loss 2.31`.
    """
    if name.endswith("_mfu"):
        return f"{value:.0%} of {name.removesuffix('_mfu')} peak"
    if name.endswith("memory_bytes"):
        return f"{name.removesuffix('memory_bytes').replace('_', ' ').upper()}{size_text(value)}"
    if name in SPEEDS:
        return SPEEDS[name].format(figure_text(round(value)) if value >= 100 else figure_text(value))
    return f"{name} {figure_text(value)}"


def _finished_line(event: Mapping[str, Any], place: str) -> Text:
    from rich.text import Text

    mark, style = MARKS[event["status"]]
    took = seconds_text(event["seconds"]) if event["status"] == "done" else event["status"]
    metrics = event.get("metrics") or {}
    figures = [shown_figure(name, value) for name, value in list(metrics.items())[:MAX_FIGURES]]
    return Text.assemble(
        (f"{mark} ", style),
        (f"{place} ", "dim"),
        (f"{event['step']:<18} ", "bold"),
        (f"{took:<12} ", "" if event["status"] == "done" else style),
        (" · ".join(figures), "dim"),
    )


def _tell_end(attached: Attached) -> int:
    from rich.text import Text

    from liuyi.core.errors import StepError
    from liuyi.core.runner.launch import state

    run = attached.run()
    found = state(run)
    if found == "done":
        _tell_report(attached)
        took = seconds_text((run.finished or run.created) - run.created)
        console().print(Text.assemble(("done", "green"), f" in {took} · run {run.id}"))
        return 0
    if found == "cancelled":
        error_console().print(f"cancelled; 'liuyi resume {run.id}' goes on from here")
        return EXIT_CANCELLED
    if found == "failed":
        print_error(StepError(run.error, hint=f"'liuyi resume {run.id}' tries again from the failed step"))
        return EXIT_ERROR
    log = attached.home.run_dir(run.id) / "_worker.log"
    print_error(StepError(f"the worker of run {run.id} is gone", hint=f"'liuyi resume {run.id}' goes on; see {log}"))
    return EXIT_ERROR


def _tell_report(attached: Attached) -> None:
    """Print the effect report that the run made last, if it made one, and where its page is."""
    artifact = report_of(attached.home, attached.run())
    if artifact is None:
        return
    from liuyi.evaluate.report import print_report

    print_report(artifact, console())
    console().print(f"report: {artifact.file('report.html')}", soft_wrap=True)


def report_of(home: Any, run: Run) -> Any:
    """The last artifact of kind `report` that the steps of a run gave; None if they gave none."""
    for step in reversed(home.ledger.steps(run.id)):
        execution = home.ledger.execution(step.key) if step.status in ("done", "cached") else None
        for digest in (execution.outputs if execution else {}).values():
            if home.store.has(digest) and home.store.manifest(digest).kind == "report":
                return home.store.open(digest)
    return None
