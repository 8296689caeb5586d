"""`liuyi keys`: make, list and revoke the API keys of a server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from liuyi.cli.common import console, error_console, print_json, table

FILE = "keys.yaml"

_file = click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=FILE,
    show_default=True,
    help="The file that 'liuyi serve --keys-file' reads; it holds hashes only.",
)


@click.group()
def command() -> None:
    """Make, list and revoke the API keys of a server, which notices every change at once."""


@command.command()
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Requests it may make [default: any number].")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Tokens, read and written [default: any number].")
@_file
def create(name: str, requests_per_minute: int | None, tokens_per_minute: int | None, keys_file: Path) -> None:
    """Make a key called NAME and print it. It is shown this once: the file holds its hash."""
    from liuyi.infer.server.keys import KeyFile

    secret, _ = KeyFile(keys_file).create(
        name, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
    )
    click.echo(secret)
    error_console().print(f"hash written to {keys_file}; the key itself is not shown again", style="dim")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_file
def list_(as_json: bool, keys_file: Path) -> None:
    """List the keys by name, with their limits."""
    from rich.text import Text

    from liuyi.infer.server.keys import KeyFile

    keys = KeyFile(keys_file).load()
    if as_json:
        print_json([asdict(key) for key in keys])
        return
    if not keys:
        console().print(f"there are no keys in {keys_file}")
        return
    listing = table("name", "created", "requests/min", "tokens/min", right=("requests/min", "tokens/min"))
    for key in keys:
        limits = [f"{limit:,}" if limit else "any" for limit in (key.requests_per_minute, key.tokens_per_minute)]
        listing.add_row(Text(key.name), key.created, *limits)
    console().print(listing)


@command.command()
@click.argument("name")
@_file
def revoke(name: str, keys_file: Path) -> None:
    """Forget the key called NAME.

    A running server refuses it from now on.
    """
    from liuyi.infer.server.keys import KeyFile

    KeyFile(keys_file).revoke(name)
    console().print(f"revoked {name}")
