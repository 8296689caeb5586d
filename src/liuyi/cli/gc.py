"""`liuyi gc`: remove what no run and no pin needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, home, print_json, short, size_text, table

if TYPE_CHECKING:
    from liuyi.core.gc import Garbage, Item
    from liuyi.core.home import Home


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--forget", multiple=True, metavar="RUN", help="Forget this run first; may be given several times.")
@click.option("--keep-runs", type=click.IntRange(min=0), metavar="N", help="Forget all but the N latest runs first.")
@click.option("--unknown", is_flag=True, help="Also remove what this ledger has never heard of.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context, dry_run: bool, forget: tuple[str, ...], keep_runs: int | None, unknown: bool, as_json: bool
) -> None:
    """Remove artifacts that no run and no pin needs, and what dead processes left behind.

    What an artifact came from is kept with it. While a run is active, nothing that it might use is touched. A run
    that is forgotten leaves its lineage in the ledger, but no longer keeps its artifacts.
    """
    from liuyi.core.gc import collect

    place = home(ctx)
    runs = _runs_to_forget(place, forget, keep_runs)
    found = collect(place, dry_run=dry_run, forget=runs, unknown=unknown)
    if as_json:
        print_json(asdict(found) | {"bytes": found.bytes, "dry_run": dry_run, "forgotten_runs": runs})
    else:
        _print(found, runs, dry_run)


def _runs_to_forget(place: Home, forget: tuple[str, ...], keep_runs: int | None) -> list[str]:
    from liuyi.core.runner.launch import ACTIVE, state

    named = [place.ledger.run(ref).id for ref in forget]
    if keep_runs is not None:
        older = place.ledger.runs(limit=None)[keep_runs:]
        named += [run.id for run in older if state(run) not in ACTIVE]
    return list(dict.fromkeys(named))


def _print(found: Garbage, runs: list[str], dry_run: bool) -> None:
    from rich.text import Text

    out = console()
    would = "would be " if dry_run else ""
    if runs:
        out.print(f"{would}forgotten: {', '.join(runs)}", soft_wrap=True)
    if found.artifacts or found.folders:
        listing = table("what", "", "size", right=("size",))
        for item in (*found.artifacts, *found.folders):
            listing.add_row(item.kind, Text(_name(item)), size_text(item.bytes))
        out.print(listing)
    out.print(f"{size_text(found.bytes)} {would}removed, {found.kept} artifacts kept ({size_text(found.kept_bytes)})")
    if found.unknown:
        size = size_text(sum(item.bytes for item in found.unknown))
        out.print(f"{len(found.unknown)} unknown to this ledger ({size}) left alone; --unknown removes them too")


def _name(item: Item) -> str:
    return short(item.name) if "/" not in item.name else item.name
