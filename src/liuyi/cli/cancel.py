"""`liuyi cancel`: stop a run."""

from __future__ import annotations

import click

from liuyi.cli.common import console, home


@click.command()
@click.argument("run", default="last")
@click.pass_context
def command(ctx: click.Context, run: str) -> None:
    """Stop RUN (its id, the beginning of it, or 'last').

    What its finished steps made is kept, and so is the last checkpoint of the step that was running.
    """
    from liuyi.core.runner.launch import cancel_run

    stopped = cancel_run(home(ctx), run)
    console().print(f"run {stopped.id} is {stopped.status}; 'liuyi resume {stopped.id}' goes on with it")
