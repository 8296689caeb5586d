"""`liuyi run`: check a recipe, start a worker for it, and watch."""

from __future__ import annotations

import click

from liuyi.cli.common import console, engine_option, home


@click.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="STEP.FIELD=VALUE", help="Override a field of the recipe.")
@click.option("--seed", type=click.IntRange(min=0), help="The seed, in place of the recipe's.")
@click.option("--until", metavar="STEP", help="Run only this step and what it needs.")
@click.option("--detach", is_flag=True, help="Start the run and do not watch it.")
@engine_option
@click.option("--check", is_flag=True, help="Check the recipe and run nothing.")
@click.pass_context
def command(
    ctx: click.Context,
    recipe: str,
    overrides: tuple[str, ...],
    seed: int | None,
    until: str | None,
    detach: bool,
    check: bool,
) -> None:
    """Run RECIPE: the name of a built-in recipe, a file, or a folder with a recipe.yaml.

    Everything is checked before anything runs. The run belongs to a worker of its own: Ctrl-C asks whether to
    detach from it or to cancel it, and it goes on when the terminal is closed. Where nobody can be asked, Ctrl-C
    and SIGTERM cancel. Work that was done before, by any run, is not done again.

    Paths in a recipe start at the recipe's folder; those of a built-in recipe, at the current one.
    """
    from liuyi.core.recipe import find_recipe
    from liuyi.core.runner.launch import check_recipe, start_run

    source = find_recipe(recipe)
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    if check:
        steps = check_recipe(home(ctx), source, overrides).until(until)
        console().print(f"{source.name} is right: {len(steps)} {'step' if len(steps) == 1 else 'steps'}")
        return
    attached = start_run(home(ctx), source, overrides=overrides, until=until)
    if detach:
        console().print(f"run {attached.run_id} goes on; 'liuyi resume {attached.run_id}' watches it")
        return
    console().print(f"run {attached.run_id}", style="dim")
    from liuyi.cli.watch import watch

    ctx.exit(watch(attached))
