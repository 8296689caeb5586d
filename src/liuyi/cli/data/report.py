"""`liuyi data report`: one page about data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, home, short

if TYPE_CHECKING:
    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home


@click.command()
@click.argument("ref", default="last", metavar="[RUN|REF]")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the page to this file.")
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser.")
@click.pass_context
def command(ctx: click.Context, ref: str, output: Path | None, in_browser: bool) -> None:
    """Write a page about the data of RUN, by default the last one, or about the artifact REF.

    It shows what was dropped and why, each attribute with its threshold and what moving it would change, the documents
    just kept and just dropped, duplicates with their differences, and what the tokens are of. The page needs nothing
    else: no script and no network.
    """
    from liuyi.core.disk import full_disk_is_told
    from liuyi.data.look.page import page
    from liuyi.data.look.report import build_report

    place = home(ctx)
    title, artifacts = _found(place, ref)
    path = output or place.path / "reports" / f"data-{short(artifacts[-1].digest)}.html"
    text = page(build_report(place, artifacts, title))
    with full_disk_is_told("writing the page", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    console().print(f"page: {path.absolute()}", soft_wrap=True)
    if in_browser:
        click.launch(path.absolute().as_uri())


def _found(place: Home, ref: str) -> tuple[str, list[Artifact]]:
    """A title, and the artifacts that `ref` means: what a run gave, or one alone."""
    from liuyi.core.errors import DataError, LedgerError
    from liuyi.core.refs import resolve_artifact

    try:
        run = place.ledger.run(ref)
    except LedgerError:
        if ref == "last":
            raise
        artifact = place.store.open(resolve_artifact(place, ref))
        return f"{artifact.kind.capitalize()} {short(artifact.digest)}", [artifact]
    artifacts = [
        place.store.open(digest)
        for step in place.ledger.steps(run.id)
        if step.status in ("done", "cached") and (execution := place.ledger.execution(step.key))
        for digest in execution.outputs.values()
        if place.store.has(digest)
    ]
    if not artifacts:
        raise DataError(f"run {run.id} has given nothing yet")
    return f"Data of {run.recipe}, run {run.id}", artifacts
