"""Where recipes come from: the built-in ones by bare name, the user's own by path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from liuyi.core.errors import RecipeError, did_you_mean

FILE_NAME = "recipe.yaml"
"""What a recipe is called in a folder of its own."""


@dataclass(frozen=True)
class RecipeSource:
    """A recipe's file, and the folder in which its paths of own data start."""

    name: str
    """As messages give it: a path as the user wrote it, or the bare name of a built-in recipe."""
    path: Path
    folder: Path

    @cached_property
    def text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe cannot be read: {error}", where=self.name) from None


def builtin_recipes() -> dict[str, RecipeSource]:
    """The recipes that come with Liuyi, by name. Their paths of own data start in the current folder."""
    import liuyi.recipes

    here = Path.cwd()
    files = sorted(file for folder in liuyi.recipes.__path__ for file in Path(folder).glob("*.yaml"))
    return {file.stem: RecipeSource(file.name, file, here) for file in files}


def find_recipe(name: str) -> RecipeSource:
    """A built-in recipe by its bare name, else a file, else the `recipe.yaml` in a folder.

    Raises RecipeError with the nearest built-in name if there is none.
    """
    known = builtin_recipes()
    if name in known:
        return known[name]
    path = Path(name)
    file = path / FILE_NAME if path.is_dir() else path
    if file.is_file():
        return RecipeSource(str(file), file.resolve(), file.resolve().parent)
    missing = f"the folder has no {FILE_NAME}" if path.is_dir() else "there is no such recipe"
    raise RecipeError(missing, where=name, hint=f"{did_you_mean(name, known)}; or give the path of a file")
