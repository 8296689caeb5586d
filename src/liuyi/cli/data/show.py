"""`liuyi data show`: documents as selection sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, figure_text, home, print_json, printable, short, table

if TYPE_CHECKING:
    from rich.text import Text

    from liuyi.data.look.find import Seen
    from liuyi.data.look.view import View

SPANS = {"pii": "black on yellow", "repeated": "strike red"}
"""Attributes that are spans of the text, and how they are shown."""
LISTED_DUPLICATES = 5


@click.command()
@click.argument("ref")
@click.argument("id", default="")
@click.option("--row", type=click.IntRange(min=0), help="The document in this row, from 0.")
@click.option("--reason", default="", help="Documents dropped for this reason, such as 'too short'.")
@click.option("--kept", "kept", flag_value=True, type=bool, default=None, help="Documents that are kept.")
@click.option("--dropped", "kept", flag_value=False, type=bool, help="Documents that are dropped.")
@click.option("--random", "any_", is_flag=True, help="Any documents.")
@click.option("--near", default="", metavar="THRESHOLD", help="Those just kept and just dropped by it: max_code_lines.")
@click.option("--where", multiple=True, metavar="CONDITION", help="lang=zh, words>=500, pii>0; several must all hold.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="So many documents.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws other documents.")
@click.option("--as", "judged_as", default="", metavar="REF", help="Judge by the thresholds that gave this selection.")
@click.option(
    "--chars", type=click.IntRange(min=0), default=1500, show_default=True, help="Characters of text; 0: all."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, ref: str, id: str, judged_as: str, chars: int, as_json: bool, **asked: Any) -> None:
    """Show documents of the corpus REF: attributes, kept or dropped and why, what is masked or cut out, where from.

    REF is a corpus that data.clean measured, or what data.select made of one. Without anything that chooses documents,
    it is counted what is kept and dropped. Documents are drawn by chance, the same ones each time.

    \b
    liuyi data show last/clean --dropped -n 3
    liuyi data show last/clean --near min_words -n 4
    liuyi data show last/select.train --where lang=zh --where "words>500"
    """
    from liuyi.core.refs import resolve_artifact
    from liuyi.data.look.find import Condition, Query, find, see
    from liuyi.data.look.view import view_of

    place = home(ctx)
    view = view_of(place, place.store.open(resolve_artifact(place, ref)), judged_as)
    chosen = id or asked["row"] is not None or asked["reason"] or asked["near"] or asked["where"] or asked["any_"]
    if not chosen and asked["kept"] is None:
        _summary(view, as_json)
        return
    query = Query(
        id=id,
        row=asked["row"],
        reason=asked["reason"],
        kept=asked["kept"],
        near=asked["near"],
        where=tuple(map(Condition.parse, asked["where"])),
    )
    found = see(view, find(view, query, asked["count"], asked["seed"]))
    if as_json:
        said = [asdict(seen) | {"kept": not seen.evidence} for seen in found]
        print_json({"corpus": view.corpus.digest, "judged_by": view.judged_by, "documents": said})
        return
    if not found:
        console().print("no such document", style="dim")
    for number, seen in enumerate(found):
        if number:
            console().rule(style="dim")
        _print(view, seen, chars)


def _summary(view: View, as_json: bool) -> None:
    from liuyi.data.look.survey import survey

    found = survey(view)
    if as_json:
        reasons = [{"reason": reason} | asdict(tally) for reason, tally in found.by_reason.items() if reason]
        said = {"total": asdict(found.total), "kept": asdict(found.kept), "dropped": reasons}
        print_json({"corpus": view.corpus.digest, "judged_by": view.judged_by} | said)
        return
    listing = table("", "documents", "share", "MB", right=("documents", "share", "MB"))
    ranked = sorted(found.by_reason.items(), key=lambda item: (item[0] != "", -item[1].documents))
    for reason, tally in ranked:
        share = tally.documents / max(1, found.total.documents)
        listing.add_row(reason or "kept", f"{tally.documents:,}", f"{share:.1%}", f"{tally.bytes / 1e6:,.1f}")
    console().print(listing)
    _say_judge(view)


def _say_judge(view: View) -> None:
    said = f"judged by {view.judged_by}" if view.judge else "nothing was measured; data.clean does it"
    console().print(said, style="dim")


def _print(view: View, seen: Seen, chars: int) -> None:
    from rich.text import Text

    document = seen.document
    console().print(Text.assemble((f"document {document['id']}", "bold"), f"  row {seen.row:,}"))
    pairs = [(name, str(document.get(name) or "")) for name in ("source", "url", "license", "cluster", "created")]
    _print_pairs((name, Text(printable(value))) for name, value in pairs if value)
    console().print()
    if view.judge is not None:
        _print_verdict(view, seen)
        _print_duplicates(view, seen)
        _print_attributes(seen)
    console().print(_marked(seen, chars or len(document["text"])), soft_wrap=True)


def _print_verdict(view: View, seen: Seen) -> None:
    from rich.text import Text

    if not seen.evidence:
        console().print(Text.assemble(("kept", "bold green"), (f"  by {view.judged_by}", "dim")))
    for number, one in enumerate(seen.evidence):
        said = [_said(name, value) for name, value in (*one.values.items(), *one.thresholds.items())]
        word, style = ("dropped: ", "bold red") if number == 0 else ("also: ", "red")
        console().print(Text.assemble((f"{word}{one.reason}", style), f"  {'; '.join(said)}"), soft_wrap=True)
    if seen.evidence:
        console().print(Text(f"by {view.judged_by}", style="dim"))
    console().print()


def _print_duplicates(view: View, seen: Seen) -> None:
    from rich.text import Text

    from liuyi.data.look.find import Condition, Query, find, see

    kind, stays = seen.attributes.get("duplicate_kind"), seen.attributes.get("duplicate_of")
    if stays:
        similarity = figure_text(seen.attributes["duplicate_similarity"])
        console().print(Text(f"{kind} duplicate of {stays}, similarity {similarity}\n"))
        return
    if "duplicate_of" not in seen.attributes:
        return
    query = Query(where=(Condition("duplicate_of", "=", seen.document["id"]),))
    others = see(view, find(view, query, LISTED_DUPLICATES + 1))
    for other in others[:LISTED_DUPLICATES]:
        facts = f"{other.attributes['duplicate_kind']}, {figure_text(other.attributes['duplicate_similarity'])}"
        address = other.document["url"] or other.document["source"]
        said = f"stands for {short(other.document['id'])}  {facts}  {address}"
        console().print(Text(printable(said)), soft_wrap=True)
    if len(others) > LISTED_DUPLICATES:
        console().print("… and for more", style="dim")
    if others:
        console().print()


def _print_attributes(seen: Seen) -> None:
    """Figures in columns side by side; those that a rule dropped the document for in red."""
    from rich.columns import Columns
    from rich.text import Text

    blamed = {name for one in seen.evidence for name in one.values}
    figures = [
        Text(_said(name, value), style="red" if name in blamed else "")
        for name, value in seen.attributes.items()
        if name not in SPANS and value not in (None, "", [])
    ]
    console().print(Columns(figures, column_first=True, padding=(0, 3)))
    console().print()


def _said(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{name} {figure_text(value)}"
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return printable(f"{name} {', '.join(value)}")
    if isinstance(value, list | tuple | Mapping):
        return printable(f"{name} {json.dumps(value, ensure_ascii=False, default=str)}")
    return printable(f"{name} {value}")


def _marked(seen: Seen, chars: int) -> Text:
    """The text, with what is personal data or repeated marked, and a line that says which."""
    from rich.text import Text

    whole = seen.document["text"]
    text = Text(printable(whole[:chars]))
    kinds: dict[str, int] = {}
    for name, style in SPANS.items():
        for span in seen.attributes.get(name) or ():
            text.stylize(style, span["start"], min(span["end"], chars))
            kinds[span["kind"]] = kinds.get(span["kind"], 0) + 1
    if len(whole) > chars:
        text.append(f"\n… {len(whole) - chars:,} more characters", style="dim")
    if kinds:
        text.append("\n\nmarked: " + ", ".join(f"{count} × {kind}" for kind, count in kinds.items()), style="dim")
    return text


def _print_pairs(pairs: Iterable[tuple[str, Text]]) -> None:
    from rich.text import Text

    listing = table("", "")
    listing.show_header = False
    for name, value in pairs:
        listing.add_row(Text(name), value)
    console().print(listing)
