"""`liuyi data where`: from a token, or a step of a training run, back to documents."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, home, print_json, printable, short, table

if TYPE_CHECKING:
    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home
    from liuyi.data.look.where import Piece, Row

PIECES = 12
"""So many documents of a batch are listed; JSON has all of them."""


@click.command()
@click.argument("ref")
@click.argument("position", type=int, required=False)
@click.option(
    "--step", type=click.IntRange(min=0), help="REF is a checkpoint: the documents in the batch of this step."
)
@click.option("--row", type=click.IntRange(min=0), help="With --step, only this row of the batch, from 0.")
@click.option("--reach", type=click.IntRange(min=0), default=40, show_default=True, help="Tokens shown on either side.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context, ref: str, position: int | None, step: int | None, row: int | None, reach: int, as_json: bool
) -> None:
    """Lead the token at POSITION of the tokens REF, or a step of the training of a checkpoint REF, to documents.

    \b
    liuyi data where last/tokens 12345
    liuyi data where last/base --step 100
    """
    from liuyi.core.refs import resolve_artifact

    place = home(ctx)
    artifact = place.store.open(resolve_artifact(place, ref))
    if artifact.kind == "tokens":
        if position is None or step is not None:
            raise click.UsageError("tokens are asked by a position, such as 12345", ctx)
        _token(place, artifact, position, reach, as_json)
    else:
        if step is None or position is not None:
            raise click.UsageError(f"a {artifact.kind} is asked by a training step, such as --step 100", ctx)
        _step(place, artifact, step, row, as_json)


def _token(place: Home, artifact: Artifact, position: int, reach: int, as_json: bool) -> None:
    from rich.text import Text

    from liuyi.data.look.where import pieces, surroundings
    from liuyi.data.tokens import Tokens
    from liuyi.model.tokenizer import Tokenizer

    tokens = Tokens(artifact.path)
    (piece,) = pieces(tokens, position, position + 1)
    tokenizer = Tokenizer.load(_source(place, artifact.digest, "tokenizer").path)
    around = surroundings(tokens, tokenizer, position, reach=reach)
    if as_json:
        print_json({"token_id": int(tokens.ids[position]), **asdict(around), **asdict(piece)})
        return
    document = piece.document
    console().print(Text.assemble((f"token {position:,}", "bold"), f" of {short(artifact.digest)}"))
    listing = table("", "")
    listing.show_header = False
    facts = [
        ("token id", f"{tokens.ids[position]}"),
        ("document", document["id"]),
        ("its token", f"{piece.offset:,} of {document['tokens']:,}"),
        *((name, document.get(column) or "") for name, column in _ORIGIN),
    ]
    for name, value in facts:
        if value:
            listing.add_row(Text(name), Text(printable(str(value))))
    console().print(listing)
    console().print()
    before, token, after = map(printable, (around.before, around.token, around.after))
    console().print(Text.assemble(before, (token, "reverse bold"), after), soft_wrap=True)


_ORIGIN = (("source", "source"), ("address", "url"), ("licence", "license"), ("cluster", "cluster"))


def _step(place: Home, checkpoint: Artifact, step: int, wanted: int | None, as_json: bool) -> None:
    from liuyi.core.errors import DataError
    from liuyi.data.look.where import batch_of_step, rows_of_batch, sources

    stream = _tokens_of(place, checkpoint)
    index = batch_of_step(checkpoint.path, step)
    rows = rows_of_batch(stream.path, checkpoint.path, index)
    if wanted is not None:
        if wanted >= len(rows):
            raise DataError(f"the batch has no row {wanted}", hint=f"it has {len(rows)} rows, from 0")
        rows = [rows[wanted]]
    if as_json:
        print_json({"step": step, "batch": index, "rows": [asdict(row) for row in rows]})
        return
    pieces = [piece for row in rows for piece in row.pieces]
    documents = len({piece.document["id"] for piece in pieces})
    count = sum(piece.tokens for piece in pieces)
    console().print(
        f"step {step}, batch {index}: {len(rows):,} rows, {count:,} tokens of {documents:,} documents", style="bold"
    )
    listing = table("source", "licence", "documents", "tokens", right=("documents", "tokens"))
    for source, licence, number, tokens in sources(rows):
        listing.add_row(_plain(source), _plain(licence or "unknown"), f"{number:,}", f"{tokens:,}")
    console().print(listing)
    console().print()
    _list_pieces(rows)


def _list_pieces(rows: list[Row]) -> None:
    listing = table("row", "tokens", "document", "address", right=("row", "tokens"))
    shown: list[tuple[int, Piece]] = [(row.place, piece) for row in rows for piece in row.pieces]
    for place, piece in shown[:PIECES]:
        end = piece.offset + piece.tokens
        document = piece.document
        address = document.get("url") or document["source"]
        listing.add_row(f"{place:,}", f"{piece.offset:,}…{end:,}", short(document["id"]), _plain(address))
    console().print(listing)
    if len(shown) > PIECES:
        console().print(f"… and {len(shown) - PIECES:,} more; --row shows one row, --json all", style="dim")


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(printable(text))


def _tokens_of(place: Home, checkpoint: Artifact) -> Artifact:
    """The tokens that a checkpoint was trained on. Raises DataError where it was trained on something else."""
    from liuyi.core.errors import DataError
    from liuyi.core.graph import Graph

    given = dict(Graph(place).inputs(checkpoint.digest))
    if "tokens" not in given:
        what = f"{checkpoint.kind} {short(checkpoint.digest)}"
        raise DataError(f"{what} was not trained on tokens", hint="give a checkpoint of pretrain.train")
    return place.store.open(given["tokens"])


def _source(place: Home, digest: str, port: str) -> Artifact:
    """The nearest artifact that one was made from through an input port of that name.

    Raises DataError where there is none.
    """
    from liuyi.core.errors import DataError
    from liuyi.core.graph import Graph

    graph = Graph(place)
    ahead, seen = [digest], {digest}
    while ahead:
        inputs = graph.inputs(ahead.pop(0))
        for name, source in inputs:
            if name == port:
                return place.store.open(source)
        ahead += [source for _, source in inputs if source not in seen]
        seen |= {source for _, source in inputs}
    raise DataError(f"it is not known which {port} {short(digest)} came from", hint="was it made here?")
