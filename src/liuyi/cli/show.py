"""`liuyi show`: what an artifact, a row or an answer is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, figure_text, home, print_json, printable, short, size_text, table

if TYPE_CHECKING:
    from liuyi.core.artifact import Manifest
    from liuyi.core.home import Home

CELL = 300
"""So many characters of a cell are shown."""


@click.command()
@click.argument("ref")
@click.option("-n", "--rows", type=click.IntRange(min=0), default=3, show_default=True, help="Rows of each table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, ref: str, rows: int, as_json: bool) -> None:
    """Show what REF is and what is in it.

    REF is the beginning of a digest, an output of a run's step (last/sft.checkpoint), a row of an artifact
    (last/before_sft:item-7), or the id of a row or of an answer.
    """
    from liuyi.core.records import Answer
    from liuyi.core.refs import resolve

    place = home(ctx)
    found = resolve(place, ref)
    if isinstance(found, str):
        _show_artifact(place, found, rows, as_json)
    elif isinstance(found, Answer):
        _show_values(f"answer {found.id}", asdict(found), as_json)
    else:
        holders = [f"{manifest.kind} {short(manifest.digest)}" for manifest in found.holders]
        left_out = [f"{manifest.kind} {short(manifest.digest)}" for manifest in found.dropped_from]
        values = found.values | {"held by": holders} | ({"left out by": left_out} if left_out else {})
        _show_values(f"{found.name} {found.id}", values, as_json)


def _show_artifact(place: Home, digest: str, rows: int, as_json: bool) -> None:
    from liuyi.core.rows import head

    artifact = place.store.open(digest)
    tables = {
        entry.path: head(artifact.file(entry.path), rows)
        for entry in artifact.manifest.files
        if entry.path.endswith(".parquet")
    }
    if as_json:
        shown = {name: {"rows": count, "head": first} for name, (first, count) in tables.items()}
        print_json(artifact.manifest.model_dump(mode="json") | {"path": str(artifact.path), "tables": shown})
        return
    _print_manifest(artifact.manifest, artifact.path)
    _print_files(artifact.manifest, {name: count for name, (_, count) in tables.items()})
    for name, (first, count) in tables.items():
        _print_rows(name, first, count)


def _print_manifest(manifest: Manifest, path: Path) -> None:
    from rich.text import Text

    out = console()
    out.print(
        Text.assemble((f"{manifest.kind} {short(manifest.digest)}", "bold"), f"  {size_text(manifest.size_bytes)}")
    )
    output = f", output {manifest.output}" if manifest.output else ""
    facts = [
        ("digest", manifest.digest),
        ("made by", f"{manifest.step or 'elsewhere'}{output}"),
        ("made", manifest.created),
        ("licences", ", ".join(manifest.licences) or "none is stated"),
        *((f"from {source.name}", short(source.digest)) for source in manifest.inputs),
        ("folder", str(path)),
    ]
    _print_pairs(facts)
    for title, values in (("parameter", manifest.params), ("metric", manifest.metrics)):
        if values:
            listing = table(title, "value")
            for name, value in values.items():
                listing.add_row(Text(name), Text(_cell(value)))
            out.print("")
            out.print(listing)


def _print_files(manifest: Manifest, counts: dict[str, int]) -> None:
    from rich.text import Text

    listing = table("file", "size", "rows", right=("size", "rows"))
    for entry in manifest.files:
        rows = f"{counts[entry.path]:,}" if entry.path in counts else ""
        listing.add_row(Text(entry.path), size_text(entry.bytes), rows)
    console().print("")
    console().print(listing)


def _print_rows(name: str, rows: list[dict[str, Any]], count: int) -> None:
    for number, row in enumerate(rows, 1):
        console().print(f"\n{name}, row {number} of {count:,}", style="dim")
        _print_pairs([(column, _cell(value)) for column, value in row.items()])


def _show_values(title: str, values: dict[str, Any], as_json: bool) -> None:
    from rich.text import Text

    if as_json:
        print_json(values)
        return
    console().print(Text(title, style="bold"))
    _print_pairs([(name, _cell(value, limit=4000)) for name, value in values.items()])


def _print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    from rich.text import Text

    listing = table("", "")
    listing.show_header = False
    for name, value in pairs:
        listing.add_row(Text(name), Text(value))
    console().print(listing)


def _cell(value: Any, limit: int = CELL) -> str:
    if isinstance(value, float):
        return figure_text(value) if value == value and abs(value) != float("inf") else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)")
