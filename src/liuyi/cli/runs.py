"""`liuyi runs`: what was run, and how it went."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, home, print_json, seconds_text, short, table

if TYPE_CHECKING:
    from liuyi.core.home import Home
    from liuyi.core.records import Run, RunStep

STYLES = {
    "queued": "dim",
    "waiting": "dim",
    "running": "blue",
    "done": "green",
    "cached": "cyan",
    "failed": "bold red",
    "cancelled": "yellow",
    "lost": "bold yellow",
}
LOG_LINES = 10


@click.command()
@click.argument("run", required=False)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many runs to list.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, run: str | None, limit: int, as_json: bool) -> None:
    """List the latest runs, or show RUN (its id, the beginning of it, or 'last').

    A run is 'lost' when its worker is gone; 'liuyi resume' goes on with it.
    """
    place = home(ctx)
    if run is None:
        runs = place.ledger.runs(limit)
        if as_json:
            print_json([_as_json(place, each) for each in runs])
        else:
            _list(place, runs)
        return
    found = place.ledger.run(run)
    if as_json:
        print_json(_as_json(place, found))
    else:
        _show(place, found)


def _as_json(place: Home, run: Run) -> dict[str, Any]:
    from liuyi.core.runner.launch import state

    steps = [asdict(step) | {"outputs": _outputs(place, step)} for step in place.ledger.steps(run.id)]
    return asdict(run) | {"state": state(run), "folder": str(place.run_dir(run.id)), "steps": steps}


def _outputs(place: Home, step: RunStep) -> dict[str, str]:
    execution = place.ledger.execution(step.key) if step.status in ("done", "cached") else None
    return execution.outputs if execution else {}


def _list(place: Home, runs: list[Run]) -> None:
    from rich.text import Text

    from liuyi.core.runner.launch import state

    if not runs:
        console().print("no run yet; start one with 'liuyi run quickstart'")
        return
    listing = table("run", "recipe", "state", "steps", "started", "took", right=("steps", "took"))
    for run in runs:
        found = state(run)
        steps = place.ledger.steps(run.id)
        finished = sum(step.status in ("done", "cached") for step in steps)
        listing.add_row(
            run.id,
            run.recipe,
            Text(found, style=STYLES[found]),
            f"{finished}/{len(steps)}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created)),
            _took(run),
        )
    console().print(listing)


def _took(run: Run) -> str:
    from liuyi.core.runner.launch import ACTIVE, state

    now = time.time() if state(run) in ACTIVE else run.heartbeat
    end = run.finished or now
    return seconds_text(end - run.created) if end else ""


def _show(place: Home, run: Run) -> None:
    from rich.text import Text

    from liuyi.core.runner.launch import state

    out = console()
    found = state(run)
    steps = place.ledger.steps(run.id)
    counts = Counter(step.status for step in steps)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    out.print(
        Text.assemble(
            f"run {run.id} · {run.recipe} · ", (found, STYLES[found]), f" · {_took(run)} · {said or 'no step yet'}"
        )
    )
    out.print(f"from {run.source}{''.join(f' --set {each}' for each in run.overrides)}", style="dim", soft_wrap=True)
    listing = table("", "step", "kind", "state", "took", "outputs", right=("took",))
    for step in steps:
        outputs = " ".join(f"{name}={short(digest)}" for name, digest in _outputs(place, step).items())
        took = seconds_text(step.seconds) if step.seconds is not None else ""
        status = Text(step.status, style=STYLES[step.status])
        listing.add_row(str(step.position + 1), step.name, step.step, status, took, outputs)
    out.print(listing)
    if run.error:
        out.print(Text.assemble(("error: ", "bold red"), run.error), soft_wrap=True)
    folder = place.run_dir(run.id)
    for step in steps:
        if step.status in ("failed", "running", "cancelled"):
            _show_log(folder / f"{step.name}.log", step.status)
    if found == "lost":
        _show_log(folder / "_worker.log", "lost")
    if found in ("failed", "cancelled", "lost"):
        out.print(f"'liuyi resume {run.id}' goes on with it")


def _show_log(path: Path, status: str) -> None:
    if not path.exists():
        return
    from rich.text import Text

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    console().print(f"\nthe end of {path} ({status}):", style="dim", soft_wrap=True)
    for line in lines[-LOG_LINES:]:
        console().print(Text(f"  {line}"), soft_wrap=True)
