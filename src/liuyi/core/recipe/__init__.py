"""Recipes: what to run, in YAML, checked as a whole before anything runs.

    recipe: mine
    description: Fine-tune a model on our conversations.
    seed: 1
    steps:
      desk:
        step: data.chats_file
        path: chats.jsonl                # not an input of the step, so a parameter
      sft:
        step: finetune.sft
        model: artifact:3f9a61c0d2       # an input: a stored artifact …
        chats: ${desk.train}             # … or another step's output; a list of these where a port takes several
        epochs: 3

Find one with `find_recipe` and read it with `parse_recipe`: every mistake in it is told at once, with file,
line and field.
"""

from liuyi.core.recipe.check import parse_recipe
from liuyi.core.recipe.document import InvalidRecipe
from liuyi.core.recipe.find import RecipeSource, builtin_recipes, find_recipe
from liuyi.core.recipe.model import Recipe, RecipeStep, Source, StepOutput, StoredArtifact
from liuyi.core.recipe.schema import recipe_schema, step_schema

__all__ = [
    "InvalidRecipe",
    "Recipe",
    "RecipeSource",
    "RecipeStep",
    "Source",
    "StepOutput",
    "StoredArtifact",
    "builtin_recipes",
    "find_recipe",
    "parse_recipe",
    "recipe_schema",
    "step_schema",
]
