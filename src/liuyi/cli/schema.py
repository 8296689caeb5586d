"""`liuyi schema`: JSON Schemas for editors and other programs."""

from __future__ import annotations

import click

from liuyi.cli.common import print_json


@click.group()
def command() -> None:
    """Print the JSON Schema of recipes or of one step.

    Editors complete and check a recipe that begins with the line
    '# yaml-language-server: $schema=recipe.schema.json'.
    """


@command.command("recipe")
def recipe() -> None:
    """The schema of recipes, with every step that is installed here."""
    from liuyi.core.recipe import recipe_schema

    print_json(recipe_schema())


@command.command("step")
@click.argument("name")
def step(name: str) -> None:
    """The schema of what a recipe may say of the step NAME."""
    from liuyi.core.recipe import step_schema
    from liuyi.core.step import get_step

    print_json(step_schema(get_step(name)))
