"""`liuyi export`: an artifact out of the store, for another home or for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, home, short, size_text

if TYPE_CHECKING:
    from liuyi.core.home import Home
    from liuyi.model.export import Exported

FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


@click.command()
@click.argument("ref")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file or folder to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["archive", "hf", "gguf", "peft", "ollama"]),
    default="archive",
    show_default=True,
    help="A tar file for 'liuyi import'; a model folder for transformers; a file for llama.cpp; an adapter for PEFT; "
    "a file and a Modelfile for Ollama.",
)
@click.option(
    "--format",
    "numbers",
    type=click.Choice(FORMATS, case_sensitive=False),
    help="Number format of the weights, for gguf and ollama [default: F16].",
)
@click.option("--adapter", metavar="REF", help="A LoRA adapter to merge into the weights on the way.")
@click.option("--alone", is_flag=True, help="Archive without the files of what it came from; the records go along.")
@click.pass_context
def command(
    ctx: click.Context, ref: str, output: Path, form: str, numbers: str | None, adapter: str | None, alone: bool
) -> None:
    """Write the artifact REF, with all it came from, to one file; or a model as other programs read it.

    Of other programs' forms REF may also be a folder with a model or an adapter, or a GGUF file.
    """
    if alone and form != "archive":
        raise click.UsageError("--alone is for archives")
    if numbers and form not in ("gguf", "ollama"):
        raise click.UsageError("--format is for gguf and ollama")
    if adapter and form not in ("hf", "gguf", "ollama"):
        raise click.UsageError("--adapter is for models")
    if form == "archive":
        if Path(ref).exists():
            raise click.UsageError(
                f"an archive is of an artifact, and {ref} is a path; say --to hf, gguf, peft or ollama"
            )
        _archive(home(ctx), ref, output, alone)
        return
    from liuyi.model.exchange import source_of

    place = home(ctx)
    source = source_of(place, ref)
    merged = source_of(place, adapter).path if adapter else None
    from liuyi.model import export

    done: Exported
    if form == "hf":
        done = export.export_hf(source, output, merged)
    elif form == "peft":
        done = export.export_peft(source, output)
    else:
        write = export.export_gguf_file if form == "gguf" else export.export_ollama
        done = write(source, output, (numbers or "F16").upper(), merged)
    names = f" ({', '.join(done.files)})" if output.is_dir() else f" ({size_text(output.stat().st_size)})"
    console().print(f"{source.name} → {output}{names}", soft_wrap=True)
    for note in done.notes:
        console().print(f"  {note}", soft_wrap=True)
    if form == "ollama":
        console().print(f"  ollama create NAME -f {output / 'Modelfile'}", soft_wrap=True)


def _archive(place: Home, ref: str, output: Path, alone: bool) -> None:
    from liuyi.core.archive import export_archive
    from liuyi.core.refs import resolve_artifact

    digest = resolve_artifact(place, ref)
    packed = export_archive(place, digest, output, alone=alone)
    size = size_text(output.stat().st_size)
    others = len(packed.artifacts) - 1
    with_others = f" with {others} that it came from" if others else ""
    console().print(f"{packed.root.kind} {short(digest)}{with_others} → {output} ({size})", soft_wrap=True)
    if packed.absent:
        console().print(f"no longer in the store, so in the records only: {', '.join(map(short, packed.absent))}")
