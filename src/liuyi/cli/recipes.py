"""`liuyi recipes`: the recipes that come with Liuyi."""

from __future__ import annotations

import click

from liuyi.cli.common import console, table


@click.command()
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the built-in recipes, or print the recipe NAME.

    'liuyi recipes quickstart > mine.yaml' makes a copy to change.
    """
    from liuyi.core.errors import RecipeError, did_you_mean
    from liuyi.core.recipe import builtin_recipes
    from liuyi.core.recipe.document import read_document

    known = builtin_recipes()
    if name is None:
        listing = table("recipe", "what it does")
        for each, source in known.items():
            listing.add_row(each, read_document(source.text, source.name).data.get("description", ""))
        console().print(listing)
    elif name not in known:
        raise RecipeError(f"there is no built-in recipe '{name}'", hint=did_you_mean(name, known))
    elif console().is_terminal:
        from rich.syntax import Syntax

        console().print(Syntax(known[name].text, "yaml", background_color="default"))
    else:
        click.echo(known[name].text, nl=False)
