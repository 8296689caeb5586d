"""`liuyi data mix`: what a mixture will hold, before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import console, figure_text, home, print_json, table

if TYPE_CHECKING:
    from pathlib import Path

    from liuyi.core.artifact import Artifact
    from liuyi.core.home import Home
    from liuyi.core.recipe import RecipeStep, Source
    from liuyi.data.mix.params import MixParams
    from liuyi.data.mix.plan import Plan


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="RECIPE|REF…")
@click.option("--set", "overrides", multiple=True, metavar="STEP.FIELD=VALUE", help="Override a field of the recipe.")
@click.option("--step", "only", metavar="STEP", help="The recipe's mixing step, where it has several.")
@click.option("--weights", metavar="A=2,B=1", help="For references: weights by label.")
@click.option("--temperature", type=float, help="For references: weights are tokens ** (1 / temperature).")
@click.option("--tokens", type=click.IntRange(min=1), help="For references: the budget.")
@click.option("--max-epochs", type=float, help="For references: passes over a source at most [default: 4].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    what: tuple[str, ...],
    overrides: tuple[str, ...],
    only: str | None,
    weights: str | None,
    temperature: float | None,
    tokens: int | None,
    max_epochs: float | None,
    as_json: bool,
) -> None:
    """Say what a mixture will hold: tokens there, asked for and taken of each source, how often, and what is odd.

    WHAT is a recipe whose sources have been made, or tokens themselves, each as a reference or LABEL=REFERENCE.

    \b
    liuyi data mix recipe.yaml --set mix.token_budget=2000000
    liuyi data mix web=last/web.tokens code=last/code.tokens --weights web=3,code=1
    """
    place = home(ctx)
    asked: dict[str, object] = {"temperature": temperature, "token_budget": tokens, "max_epochs": max_epochs}
    asked["weights"] = _weights(weights) if weights else None
    said = {name: value for name, value in asked.items() if value is not None}
    if _is_recipe(what):
        if said:
            raise click.UsageError("a recipe's own fields are changed by --set", ctx)
        plan = _of_recipe(place, what[0], overrides, only)
    else:
        if overrides or only:
            raise click.UsageError("--set and --step belong to a recipe", ctx)
        plan = _of_references(place, what, said)
    if as_json:
        _print_json(plan)
        return
    _print(plan)


def _is_recipe(what: Sequence[str]) -> bool:
    from pathlib import Path

    from liuyi.core.recipe import builtin_recipes

    (first, *more) = what
    return not more and (first in builtin_recipes() or first.endswith((".yaml", ".yml")) or Path(first).exists())


def _of_references(place: Home, what: Sequence[str], said: Mapping[str, object]) -> Plan:
    from pydantic import ValidationError

    from liuyi.core.errors import DataError
    from liuyi.core.refs import resolve_artifact
    from liuyi.data.mix.params import MixParams
    from liuyi.data.mix.plan import labels_of

    pairs = [one.partition("=") if "=" in one else ("", "", one) for one in what]
    given = [label for label, _, _ in pairs if label]
    labels = labels_of(given if len(given) == len(pairs) else (), len(pairs))
    artifacts = [place.store.open(resolve_artifact(place, ref)) for _, _, ref in pairs]
    try:
        params = MixParams.model_validate({"labels": labels, **said})
    except ValidationError as error:
        raise DataError(error.errors()[0]["msg"], where="the mixture") from None
    return _plan(params, labels, artifacts)


def _of_recipe(place: Home, what: str, overrides: tuple[str, ...], only: str | None) -> Plan:
    from liuyi.core.errors import RecipeError, did_you_mean
    from liuyi.core.recipe import find_recipe
    from liuyi.core.runner.launch import check_recipe
    from liuyi.data.mix.plan import labels_of

    source = find_recipe(what)
    recipe = check_recipe(place, source, overrides)
    mixing = {name: step for name, step in recipe.steps.items() if step.step.name == "data.mix"}
    if not mixing:
        raise RecipeError("no step of this recipe mixes", where=source.name, hint="it needs a step of kind data.mix")
    if only is not None and only not in mixing:
        raise RecipeError(f"'{only}' does not mix", where=source.name, hint=did_you_mean(only, mixing))
    if only is None and len(mixing) > 1:
        raise RecipeError(f"{len(mixing)} steps mix", where=source.name, hint=f"--step is one of {', '.join(mixing)}")
    step = mixing[only or next(iter(mixing))]
    params: MixParams = step.params  # type: ignore[assignment]
    artifacts = _made(place, recipe.until(step.name), recipe.seed, source.folder, step)
    return _plan(params, labels_of(params.labels, len(artifacts)), artifacts)


def _made(place: Home, steps: Sequence[RecipeStep], seed: int, folder: Path, mixing: RecipeStep) -> list[Artifact]:
    """The sources of a mixing step, as earlier runs made them. Raises RecipeError where one is not there."""
    from contextlib import chdir

    from liuyi.core.errors import RecipeError
    from liuyi.core.recipe import StepOutput
    from liuyi.core.runner.keys import device_class, step_key
    from liuyi.core.runner.process import finished_outputs

    made: dict[str, dict[str, str]] = {}

    def digest(source: Source) -> str:
        return made[source.step][source.output] if isinstance(source, StepOutput) else source.digest

    with chdir(folder):
        for step in steps:
            if step is not mixing and all(need in made for need in step.needs):
                inputs = [(port, digest(source)) for port, given in step.inputs.items() for source in given]
                key = step_key(step.step, step.params, inputs, seed=seed, device=device_class(), folder=folder)
                outputs = finished_outputs(place, step.step, key)
                if outputs is not None:
                    made[step.name] = outputs
    for source in mixing.inputs["sources"]:
        if isinstance(source, StepOutput) and source.step not in made:
            raise RecipeError(
                f"'{source.step}' has not been run as the recipe has it now",
                where=mixing.where,
                hint=f"run it first: liuyi run RECIPE --until {source.step}",
            )
    return [place.store.open(digest(source)) for source in mixing.inputs["sources"]]


def _plan(params: MixParams, labels: Sequence[str], artifacts: Sequence[Artifact]) -> Plan:
    from liuyi.core.errors import DataError
    from liuyi.data.mix.plan import make_plan
    from liuyi.data.tokens import Tokens

    for label, artifact in zip(labels, artifacts, strict=True):
        if artifact.kind != "tokens":
            raise DataError(
                f"'{label}' is a {artifact.kind}, whose tokens are not counted yet", hint="run data.tokens on it first"
            )
    return make_plan(params, {label: len(Tokens(one.path)) for label, one in zip(labels, artifacts, strict=True)})


def _weights(text: str) -> dict[str, float]:
    try:
        return {label: float(value) for label, _, value in (one.partition("=") for one in text.split(","))}
    except ValueError:
        raise click.BadParameter("weights are written web=3,code=1", param_hint="--weights") from None


def _print(plan: Plan) -> None:
    from rich.text import Text

    shown = plan.table()
    listing = table(*shown.columns, right=shown.columns[1:])
    for row in shown.rows:
        listing.add_row(*(Text(figure_text(cell) if isinstance(cell, int | float) else cell) for cell in row))
    console().print(listing)
    if len(plan.stretches) > 1:
        console().print(f"\n{len(plan.stretches)} phases; training keeps them in their order")
    total = float(plan.taken.sum())
    console().print(f"\n{total:,.0f} tokens of {plan.budget:,} asked for", style="dim")
    for warning in plan.warnings():
        console().print(Text.assemble(("! ", "yellow"), warning))


def _print_json(plan: Plan) -> None:
    columns = [name.replace(" ", "_") for name in plan.table().columns]
    print_json(
        {
            "sources": [dict(zip(columns, row, strict=True)) for row in plan.table().rows],
            "token_budget": plan.budget,
            "tokens": round(float(plan.taken.sum())),
            "warnings": plan.warnings(),
        }
    )
