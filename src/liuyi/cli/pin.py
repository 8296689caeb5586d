"""`liuyi pin`: artifacts that are kept whatever happens."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from liuyi.cli.common import console, home, print_json, short, table


@click.command()
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--note", default="", help="Why it is kept.")
@click.option("--remove", is_flag=True, help="Let go of it again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, refs: tuple[str, ...], note: str, remove: bool, as_json: bool) -> None:
    """Keep the artifacts REF, and all they came from, whatever happens to the runs; without REF, list what is kept."""
    from rich.text import Text

    from liuyi.core.errors import LedgerError
    from liuyi.core.refs import resolve_artifact

    place = home(ctx)
    if remove and not refs:
        raise click.UsageError("say which pin to remove")
    for ref in refs:
        digest = resolve_artifact(place, ref)
        if not remove:
            place.ledger.pin(digest, note)
        elif not place.ledger.unpin(digest):
            raise LedgerError(f"{short(digest)} is not pinned")
    kept = place.ledger.pins()
    if as_json:
        print_json([asdict(pin) for pin in kept])
        return
    if not kept:
        console().print("nothing is pinned")
        return
    kinds = place.ledger.artifacts()
    listing = table("pinned", "kind", "since", "note")
    for pin in kept:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(pin.created))
        listing.add_row(short(pin.digest), kinds.get(pin.digest, ""), since, Text(pin.note))
    console().print(listing)
