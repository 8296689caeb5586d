"""`liuyi resume`: go on with a run that stopped, or watch one that works."""

from __future__ import annotations

import click

from liuyi.cli.common import console, engine_option, home


@click.command()
@click.argument("run", default="last")
@click.option("--detach", is_flag=True, help="Go on with the run and do not watch it.")
@engine_option
@click.pass_context
def command(ctx: click.Context, run: str, detach: bool) -> None:
    """Go on with RUN (its id, the beginning of it, or 'last') after it failed, was cancelled or lost its worker.

    Finished steps are not done again, and a step that was stopped goes on from its last checkpoint. A run whose
    worker is alive is watched, and one that is done is told once more.
    """
    from liuyi.core.runner.launch import resume_run

    attached = resume_run(home(ctx), run)
    if detach:
        console().print(f"run {attached.run_id} goes on")
        return
    console().print(f"run {attached.run_id}", style="dim")
    from liuyi.cli.watch import watch

    ctx.exit(watch(attached))
