"""`liuyi report`: what every stage of a run has to show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, home, print_json, short

if TYPE_CHECKING:
    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home
    from liuyi.evaluate.report import Report


@click.command()
@click.argument("ref", default="last", metavar="[RUN|REF]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the page to this file, too."
)
@click.option("--details", is_flag=True, help="Print bars, tables and curves, too; the page has them anyway.")
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, ref: str, output: Path | None, details: bool, in_browser: bool, as_json: bool) -> None:
    """Show the effect report of RUN, by default the last one, or the effect of the artifact REF.

    A run that has not come to its report yet shows the effects that are there, and the curves of trainings that are
    still going on, were cancelled or failed.
    """
    from liuyi.evaluate.report import print_report

    report, place = _found(home(ctx), ref)
    if output is not None or place is None or not place.exists():
        place = _written(
            report, output or place or home(ctx).path / "reports" / f"{short(report.sections[0].digest)}.html"
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report, console(), details=details)
        console().print()
        console().print(f"page: {place.absolute()}", soft_wrap=True)
    if in_browser:
        click.launch(place.absolute().as_uri())


def _found(place: Home, ref: str) -> tuple[Report, Path | None]:
    """The report that `ref` means, and where its page is or belongs."""
    from liuyi.cli.trainings import unfinished, with_speeds
    from liuyi.cli.watch import report_of
    from liuyi.core.errors import LedgerError
    from liuyi.core.refs import resolve_artifact
    from liuyi.evaluate.report import build_report, read_report

    try:
        run = place.ledger.run(ref)
    except LedgerError:
        if ref == "last" or ("-" in ref and "/" not in ref):
            raise
        artifact = place.store.open(resolve_artifact(place, ref))
        if artifact.kind == "report":
            return read_report(artifact.path), artifact.file("report.html")
        report = _demand(build_report([artifact], title=f"{artifact.kind} {short(artifact.digest)}"), ref)
        return with_speeds(place, report), None
    made = report_of(place, run)
    if made is not None:
        report = read_report(made.path)
        clocked = with_speeds(place, report)
        if clocked == report:
            return report, made.file("report.html")
    else:
        built = build_report(_outputs(place, run.id), title=run.recipe)
        built = built.model_copy(update={"sections": (*built.sections, *unfinished(place, run.id))})
        clocked = with_speeds(place, _demand(built, f"run {run.id}"))
    page = place.run_dir(run.id) / "report.html"
    page.unlink(missing_ok=True)
    return clocked, page


def _outputs(place: Home, run_id: str) -> list[Artifact]:
    """What the finished steps of a run gave, in the recipe's order."""
    artifacts = []
    for step in place.ledger.steps(run_id):
        execution = place.ledger.execution(step.key) if step.status in ("done", "cached") else None
        for digest in (execution.outputs if execution else {}).values():
            if place.store.has(digest):
                artifacts.append(place.store.open(digest))
    return artifacts


def _demand(report: Report, what: str) -> Report:
    from liuyi.core.errors import DataError

    if not report.sections:
        raise DataError(f"{what} has no effect to show", hint="verdicts, checkpoints and reports have one")
    return report


def _written(report: Report, path: Path) -> Path:
    from liuyi.core.disk import full_disk_is_told
    from liuyi.evaluate.report import page

    with full_disk_is_told("writing the report", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(report), encoding="utf-8")
    return path
