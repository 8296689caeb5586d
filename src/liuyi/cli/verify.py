"""`liuyi verify`: every byte against its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from liuyi.cli.common import EXIT_ERROR, console, home, print_json, short, size_text

if TYPE_CHECKING:
    from liuyi.core.home import Home


@click.command()
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--all", "everything", is_flag=True, help="Check every artifact of the store.")
@click.option("--remove", is_flag=True, help="Remove what is damaged, so that the next run makes it again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, refs: tuple[str, ...], everything: bool, remove: bool, as_json: bool) -> None:
    """Read every byte of the artifacts REF and compare it with its digest.

    Ends with status 1 if anything is damaged.
    """
    if everything == bool(refs):
        raise click.UsageError("say which artifacts, or --all")
    from liuyi.core.refs import resolve_artifact

    place = home(ctx)
    digests = list(place.store.digests()) if everything else [resolve_artifact(place, ref) for ref in refs]
    damaged: dict[str, list[str]] = {}
    for digest in digests:
        problems = place.store.verify(digest)
        if problems:
            damaged[digest] = problems
        if not as_json:
            _tell(place, digest, problems, remove)
        if problems and remove:
            place.store.delete(digest)
    if as_json:
        print_json({"checked": len(digests), "damaged": damaged, "removed": sorted(damaged) if remove else []})
    else:
        console().print(f"{len(digests)} checked, {len(damaged)} damaged")
    if damaged:
        ctx.exit(EXIT_ERROR)


def _tell(place: Home, digest: str, problems: list[str], remove: bool) -> None:
    from rich.text import Text

    if not problems:
        manifest = place.store.manifest(digest)
        size = size_text(manifest.size_bytes)
        said = Text.assemble(("sound", "green"), f"    {short(digest)}  {manifest.kind}  {size}")
        console().print(said, soft_wrap=True)
        return
    said = Text.assemble(("damaged", "bold red"), f"  {short(digest)}{'  removed' if remove else ''}")
    console().print(said, soft_wrap=True)
    for problem in problems:
        console().print(Text(f"         {problem}"), soft_wrap=True)
