"""`liuyi import`: an archive or a model into the store."""

from __future__ import annotations

from pathlib import Path

import click

from liuyi.cli.common import console, home, short, size_text


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--licence", "licences", multiple=True, help="Licence of a model, if its card or file does not say it.")
@click.pass_context
def command(ctx: click.Context, path: Path, licences: tuple[str, ...]) -> None:
    """Take PATH into the store: an archive of 'liuyi export', a model as a folder that transformers reads or as a GGUF
    file, or an adapter's folder as PEFT writes it.

    Every byte of an archive is compared with its digest, and nothing is kept if one differs. What an archive says of
    finished work is believed: import archives only from people you trust. What is imported is pinned.
    """
    place = home(ctx)
    from liuyi.model.load import is_gguf

    if path.is_dir() or is_gguf(path):
        from liuyi.model.exchange import import_model

        manifest = import_model(place, path, licences=licences).manifest
        count = 1
    else:
        if licences:
            raise click.UsageError("--licence is for models; an archive states its own")
        from liuyi.core.archive import import_archive

        packed = import_archive(place, path)
        manifest, count = packed.root, len(packed.artifacts)
    others = f" and {count - 1} that it came from" if count > 1 else ""
    console().print(f"{manifest.kind} {short(manifest.digest)}{others} ({size_text(manifest.size_bytes)})")
    console().print(f"licences: {', '.join(manifest.licences) or 'none is stated'}")
    console().print(f"in a recipe: artifact:{short(manifest.digest)}")
