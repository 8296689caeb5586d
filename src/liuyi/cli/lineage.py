"""`liuyi lineage`: where a thing came from, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, home, print_json

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from liuyi.core.lineage import Node

TOP = 8
"""So many sources are shown; JSON has all of them."""
TEXT = 200
WIDE = 1000
"""Columns where output goes to a file or a pipe, so that no line is broken."""


@click.command()
@click.argument("ref")
@click.option("--up", "direction", flag_value="up", help="Only what it came from.")
@click.option("--down", "direction", flag_value="down", help="Only what came of it.")
@click.option("--both", "direction", flag_value="both", default=True, help="Both ways (the default).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, ref: str, direction: Any, as_json: bool) -> None:
    """Walk from REF to what it came from, down to documents, files and licences, and to what came of it.

    REF is the beginning of a digest, an output of a run's step (last/sft.checkpoint), a row of an artifact
    (last/before_sft:item-7), or the id of a document, conversation, pair, item or answer.
    """
    from liuyi.core.lineage import trace

    found = trace(home(ctx), ref, direction)
    if as_json:
        print_json(found.as_json())
        return
    from rich.text import Text
    from rich.tree import Tree

    out = console()
    tree = Tree(_label(found.subject, ""), guide_style="dim")
    for line in _details(found.subject):
        tree.add(line)
    run = found.subject.facts.get("run", "")
    for child in found.subject.children:
        _grow(tree, child, run)
    if direction != "down":
        _grow_all(tree, "what it came from", "nothing that is known", found.up, run)
    if direction != "up":
        _grow_all(tree, "what came of it", "nothing yet", found.down, run)
    if found.licences and direction != "down":
        tree.add(Text(f"licences: {', '.join(found.licences)}", style="green"))
    out.print(tree, width=None if out.is_terminal else WIDE)


def _grow_all(tree: Tree, title: str, none: str, nodes: Sequence[Node], run: str) -> None:
    from rich.text import Text

    branch = tree.add(Text(title if nodes else f"{title}: {none}", style="bold"))
    for node in nodes:
        _grow(branch, node, run)


def _grow(tree: Tree, node: Node, run: str) -> None:
    """Add a node and all below it; `run` is the run of what stands above it, which need not be said again."""
    from rich.text import Text

    branch = tree.add(_label(node, run))
    if node.kind == "sources":
        sources = node.facts["sources"]
        for source in sources[:TOP]:
            licence = source["license"] or "licence unknown"
            branch.add(Text(f"{source['rows']:,}  {source['source'] or 'source unknown'}  {licence}"))
        if len(sources) > TOP:
            rest = sum(source["rows"] for source in sources[TOP:])
            branch.add(Text(f"{rest:,}  from {len(sources) - TOP} more sources", style="dim"))
        licences = list(node.facts["licences"].items())
        said = [f"{name or 'unknown'} {rows:,}" for name, rows in licences[:TOP]]
        said += [f"{len(licences) - TOP} more"] if len(licences) > TOP else []
        branch.add(Text(f"licences: {', '.join(said)}", style="dim"))
    for child in node.children:
        _grow(branch, child, node.facts.get("run") or run)


def _label(node: Node, run: str) -> Text:
    from rich.text import Text

    facts = node.facts
    text = Text()
    if facts.get("port"):
        text.append(f"{facts['port']}: ", style="dim")
    if node.kind == "sources":
        return text.append(f"{facts['rows']:,} × {facts['row']}")
    if not node.digest:
        text.append(f"{node.kind} ", style="bold")
        text.append(node.title)
        if node.kind == "source":
            text.append(f"  {facts.get('license') or 'licence unknown'}", style="green")
        elif node.kind == "answer":
            text.append(f"  {facts['served']}", style="dim")
        return text
    text.append(node.title, style="bold")
    made_in = f"run {facts['run']}" if facts.get("run", "") not in ("", run) else ""
    text.append("".join(f"  {part}" for part in (facts.get("step"), made_in, _licences(facts)) if part), style="dim")
    for mark, style in _marks(node):
        text.append(f"  {mark}", style=style)
    return text


def _marks(node: Node) -> list[tuple[str, str]]:
    facts = node.facts
    marks = []
    if facts.get("holds"):
        marks.append(("holds it", "green"))
    if facts.get("reason"):
        marks.append((f"left it out: {facts['reason']}", "yellow"))
    if facts.get("passed_on"):
        marks.append(("passed on as it was", "dim"))
    elif facts.get("passed_on_by"):
        marks.append((f"passed on by {', '.join(facts['passed_on_by'])}", "dim"))
    if facts.get("removed"):
        marks.append(("no longer in the store", "yellow"))
    if facts.get("outside"):
        marks.append(("was served from outside the store", "dim"))
    if node.again and not facts.get("passed_on"):
        marks.append(("as above", "dim"))
    return marks


def _licences(facts: Any) -> str:
    names = facts.get("licences") or []
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} licences"


def _details(node: Node) -> list[Text]:
    """What a row or an answer says."""
    from rich.text import Text

    if node.digest:
        return []
    lines = []
    for name, value in node.facts.items():
        if value in ("", None):
            continue
        text = " ".join(str(value).split())
        lines.append(Text(f"{name}: {text[:TEXT]}{'…' if len(text) > TEXT else ''}", style="dim"))
    return lines
