"""`liuyi data contains`: whether training data contains a text, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, home, print_json, printable, short, table

if TYPE_CHECKING:
    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home
    from liuyi.evaluate.seen import Seen

SHOWN = 20
"""So many places are listed; JSON has all of them."""
WORDS_SHOWN = 24
NAME_SHOWN = 24


@click.command()
@click.argument("ref")
@click.argument("text", required=False)
@click.option("--items", metavar="EVALSET", help="Ask for every item of an eval set in place of TEXT.")
@click.option(
    "--ngram", type=click.IntRange(min=4), default=13, show_default=True, help="So many words in a row count as found."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, ref: str, text: str | None, items: str | None, ngram: int, as_json: bool) -> None:
    """Say whether TEXT, or items of an eval set, stand in what REF holds or was trained on, and in which documents.

    A text of fewer words than --ngram is looked for as a whole. REF is a corpus, tokens, chats, preferences, or a model
    that was trained here.

    \b
    liuyi data contains last/base "the quick brown fox jumps over the lazy dog"
    liuyi data contains last/sft.checkpoint --items last/test
    """
    from liuyi.core.refs import resolve_artifact
    from liuyi.evaluate.seen import look_up, trained_on

    if (text is None) == (items is None):
        raise click.UsageError("give either a TEXT or --items", ctx)
    place = home(ctx)
    names, prompts = _asked(place, text, items)
    sources = trained_on(place, resolve_artifact(place, ref))
    found = list(look_up(place, sources, prompts, ngram=ngram))
    if as_json:
        print_json([_as_json(one, names) for one in found])
        return
    _show(found, names, [source.manifest for source in sources])


def _asked(place: Home, text: str | None, items: str | None) -> tuple[list[str], list[str]]:
    """Names of what is looked for, and what it says."""
    from liuyi.core.errors import DataError
    from liuyi.core.refs import resolve_artifact
    from liuyi.core.words import split
    from liuyi.data.contamination.items import read_items

    if text is not None:
        if not split(text):
            raise DataError("there are no words to look for", where="TEXT")
        return ["text"], [text]
    evalset: Artifact = place.store.open(resolve_artifact(place, items or ""))
    if evalset.kind != "evalset":
        raise DataError(f"{short(evalset.digest)} is a {evalset.kind}, not an eval set", where="--items")
    read = read_items([evalset])
    return read.ids, read.prompts


def _show(found: list[Seen], names: list[str], manifests: list[Any]) -> None:
    from rich.text import Text

    where = ", ".join(f"{manifest.kind} {short(manifest.digest)}" for manifest in manifests)
    items = {one.item for one in found}
    what = "found" if len(names) == 1 else f"{len(items):,} of {len(names):,} items found"
    if not found:
        console().print(f"not found in {where}", style="bold")
        return
    rows = {(one.artifact, one.row) for one in found}
    console().print(f"{what} in {len(rows):,} {'row' if len(rows) == 1 else 'rows'} of {where}", style="bold")
    listing = table("item", "in", "characters", "words", "from")
    for one in found[:SHOWN]:
        words = one.words.split()
        said = " ".join(words[:WORDS_SHOWN]) + (" …" if len(words) > WORDS_SHOWN else "")
        origin = str(one.values.get("url") or one.values.get("source") or "")
        name = names[one.item]
        name = name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}…"
        cells = (name, f"{one.kind}: {short(one.row)}", f"{one.start:,}…{one.end:,}", said, origin)
        listing.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(listing)
    if len(found) > SHOWN:
        console().print(f"… and {len(found) - SHOWN:,} more places; --json has all", style="dim")


def _as_json(one: Seen, names: list[str]) -> dict[str, Any]:
    origin = {name: one.values[name] for name in ("source", "url", "license") if one.values.get(name)}
    return {
        "item": names[one.item],
        "kind": one.kind,
        "artifact": one.artifact,
        "row": one.row,
        "start": one.start,
        "end": one.end,
        "words": one.words,
        **origin,
    }
