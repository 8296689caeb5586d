"""A recipe whose every word is known to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from liuyi.core.errors import RecipeError, did_you_mean
from liuyi.core.step import Params, Step


@dataclass(frozen=True)
class StepOutput:
    """`${step.output}`: what another step of the recipe makes."""

    step: str
    output: str

    def __str__(self) -> str:
        return f"${{{self.step}.{self.output}}}"


@dataclass(frozen=True)
class StoredArtifact:
    """`artifact:<digest>`: an artifact that the store already holds, by its whole digest once checked."""

    digest: str

    def __str__(self) -> str:
        return f"artifact:{self.digest}"


Source = StepOutput | StoredArtifact


@dataclass(frozen=True)
class RecipeStep:
    """One step of a recipe: its name there, the registered step, its parameters and where its inputs come from."""

    name: str
    step: Step
    params: Params
    inputs: Mapping[str, tuple[Source, ...]]
    where: str
    """File and line."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps of the recipe whose outputs this one takes, each once."""
        sources = (source for port in self.inputs.values() for source in port)
        return tuple(dict.fromkeys(source.step for source in sources if isinstance(source, StepOutput)))


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `steps` stand in an order in which they can run: the recipe's own wherever it can be kept."""

    name: str
    description: str
    seed: int
    steps: Mapping[str, RecipeStep]

    def until(self, name: str | None) -> tuple[RecipeStep, ...]:
        """The steps to run, in order: all, or only `name` and what it needs.

        Raises RecipeError if there is no such step.
        """
        if name is None:
            return tuple(self.steps.values())
        if name not in self.steps:
            raise RecipeError(f"the recipe has no step '{name}'", hint=did_you_mean(name, self.steps))
        wanted, open_names = {name}, [name]
        while open_names:
            fresh = [need for need in self.steps[open_names.pop()].needs if need not in wanted]
            wanted.update(fresh)
            open_names.extend(fresh)
        return tuple(step for step in self.steps.values() if step.name in wanted)
