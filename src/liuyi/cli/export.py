"""`liuyi export`: an artifact out of the store, for another home or for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from liuyi.cli.common import console, home, short, size_text


@click.command()
@click.argument("ref")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file or folder to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["archive", "hf"]),
    default="archive",
    show_default=True,
    help="A tar file for 'liuyi import', or a model folder as transformers reads it.",
)
@click.option("--alone", is_flag=True, help="Archive without the files of what it came from; the records go along.")
@click.pass_context
def command(ctx: click.Context, ref: str, output: Path, form: str, alone: bool) -> None:
    """Write the artifact REF, with all it came from, to one file; or a checkpoint as a model folder."""
    from liuyi.core.refs import resolve_artifact

    place = home(ctx)
    digest = resolve_artifact(place, ref)
    if form == "hf":
        if alone:
            raise click.UsageError("--alone is for archives")
        from liuyi.model.exchange import export_model

        names = export_model(place.store, digest, output)
        console().print(f"checkpoint {short(digest)} → {output} ({', '.join(names)})", soft_wrap=True, markup=False)
        return
    from liuyi.core.archive import export_archive

    packed = export_archive(place, digest, output, alone=alone)
    size = size_text(output.stat().st_size)
    others = len(packed.artifacts) - 1
    with_others = f" with {others} that it came from" if others else ""
    console().print(
        f"{packed.root.kind} {short(digest)}{with_others} → {output} ({size})", soft_wrap=True, markup=False
    )
    if packed.absent:
        console().print(f"no longer in the store, so in the records only: {', '.join(map(short, packed.absent))}")
