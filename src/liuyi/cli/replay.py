"""`liuyi replay`: recorded steps of a training, taken again."""

from __future__ import annotations

from dataclasses import asdict

import click

from liuyi.cli.common import EXIT_ERROR, console, home, print_json, table

SHOWN = 20
"""So many steps are listed, the last ones."""


@click.command()
@click.argument("run")
@click.argument("step")
@click.argument("number", type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, run: str, step: str, number: int, as_json: bool) -> None:
    """Take the training steps of STEP in RUN up to step NUMBER again, from the last milestone before it, and compare
    them with the log.

    Needs a training with keep_every_steps. Ends with status 1 if a step comes out differently.
    """
    from rich.text import Text

    from liuyi.train.replay import replay

    found = replay(home(ctx), run, step, number)
    parts_at = found.parts_at
    if as_json:
        print_json(asdict(found) | {"parts_at": parts_at})
    else:
        listing = table("step", "batch", "loss", "again", "gradient norm", "again", right=("loss", "gradient norm"))
        for recorded, again in list(zip(found.recorded, found.again, strict=True))[-SHOWN:]:
            figures = [row[name] for name in ("loss", "grad_norm") for row in (recorded, again)]
            listing.add_row(*map(str, [recorded["step"], recorded["batch"], *figures]))
        console().print(listing)
        what = "the same to the bit" if found.exactly else "the same but for rounding"
        first, last = found.recorded[0]["step"], found.recorded[-1]["step"]
        if parts_at is None:
            console().print(f"steps {first} to {last} came out {what}", style="green")
        else:
            why = "one of the two times was wrong, or hardware or number of threads were others"
            console().print(Text.assemble((f"step {parts_at} came out differently", "bold red"), f": {why}"))
    if parts_at is not None:
        ctx.exit(EXIT_ERROR)
