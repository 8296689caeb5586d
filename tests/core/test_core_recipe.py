"""Recipes: what is read, what is refused, and how every mistake is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from liuyi.core import step as registry
from liuyi.core.artifact import Manifest
from liuyi.core.errors import ArtifactError, RecipeError
from liuyi.core.recipe import (
    InvalidRecipe,
    Recipe,
    StepOutput,
    StoredArtifact,
    find_recipe,
    parse_recipe,
    recipe_schema,
    step_schema,
)
from liuyi.core.step import Context, Input, Output, Params, SourcePath, step

DIGEST = "3f9a61" + "0" * 58


class Schedule(Params):
    kind: Literal["wsd", "cosine"] = "wsd"
    warmup: float = 0.1


class ReadParams(Params):
    max_mb: int = Field(30, ge=1, description="at most so many MB")
    folder: SourcePath | None = None
    title: str = ""


class FitParams(Params):
    epochs: int = Field(..., ge=1, description="passes over the data")
    lr: float = 1e-3
    schedule: Schedule = Schedule()
    mix: tuple[Schedule, ...] = ()


@pytest.fixture(autouse=True)
def toy_steps() -> Iterator[None]:
    """Two steps beside the real ones, for the time of a test."""
    registry.all_steps()
    before = dict(registry._steps)

    @step("toy.read", version=1, inputs={}, outputs={"corpus": Output("corpus"), "held_out": Output("corpus")})
    def read(ctx: Context, params: ReadParams) -> None:
        """Read."""

    @step(
        "toy.fit",
        version=1,
        inputs={
            "corpus": Input("corpus"),
            "more": Input("corpus", many=True, optional=True),
            "model": Input(("checkpoint", "adapter"), optional=True),
        },
        outputs={"checkpoint": Output("checkpoint")},
    )
    def fit(ctx: Context, params: FitParams) -> None:
        """Fit."""

    yield
    registry._steps.clear()
    registry._steps.update(before)


GOOD = """\
recipe: toy
description: Two steps.
seed: 7
steps:
  fit:
    step: toy.fit
    corpus: ${docs.corpus}
    more:
      - ${docs.held_out}
      - artifact:3f9a61
    epochs: 2
    lr: 1e-4
  docs:
    step: toy.read
    title: no
"""


def stored(ref: str) -> Manifest:
    if not DIGEST.startswith(ref):
        raise ArtifactError(f"no artifact is named '{ref}'", hint="see liuyi runs")
    return Manifest(kind="corpus", digest=DIGEST, files=())


def read(text: str, *overrides: str, folder: Path | None = None) -> Recipe:
    return parse_recipe(text, "recipe.yaml", overrides=overrides, folder=folder, stored=stored)


def mistakes(text: str, *overrides: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        read(text, *overrides, folder=folder)
    return [str(problem) for problem in caught.value.problems]


def test_a_recipe_is_read_with_its_references_and_in_an_order_that_runs() -> None:
    recipe = read(GOOD)
    assert (recipe.name, recipe.description, recipe.seed) == ("toy", "Two steps.", 7)
    assert list(recipe.steps) == ["docs", "fit"]
    fit = recipe.steps["fit"]
    assert fit.params == FitParams(epochs=2, lr=1e-4)
    assert fit.inputs["corpus"] == (StepOutput("docs", "corpus"),)
    assert fit.inputs["more"] == (StepOutput("docs", "held_out"), StoredArtifact(DIGEST))
    assert fit.needs == ("docs",)
    assert fit.where == "recipe.yaml:5"


def test_words_that_older_yaml_takes_for_something_else_stay_words() -> None:
    for written, value in [("no", "no"), ("on", "on"), ("12:30", "12:30"), ("2024-01-31", "2024-01-31")]:
        assert read(GOOD.replace("title: no", f"title: {written}")).steps["docs"].params.title == value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 0.001), ("3E5", 3e5), (".5", 0.5), ("-2.", -2.0), ("1_000", 1000.0), ("0x1f", 31.0), ("007", 7.0)],
)
def test_numbers_follow_yaml_1_2(written: str, value: float) -> None:
    assert read(GOOD, f"fit.lr={written}").steps["fit"].params.lr == value  # type: ignore[attr-defined]


def test_every_mistake_is_told_at_once_by_line() -> None:
    text = """\
recipe: toy
descripton: Typing errors.
seed: -1
steps:
  docs:
    step: toy.read
    max_mb: many
    max_mb: 3
  Fit:
    step: toy.fitt
  fit:
    step: toy.fit
    corpus: ${docs.corpse}
    epoch: 3
    schedule: {kind: wds, warmupp: 3}
  more:
    step: toy.fit
    corpus: ${fit.checkpoint}
    model: ${doc.corpus}
    epochs: 0
"""
    assert mistakes(text) == [
        "recipe.yaml:2: descripton: a recipe has no field 'descripton'\n  did you mean 'description'?",
        "recipe.yaml:3: seed: the seed must be a whole number from 0 on, got -1",
        "recipe.yaml:7: steps.docs.max_mb: 'max_mb' should be a valid integer, got 'many'\n"
        "  max_mb: at most so many MB",
        "recipe.yaml:8: steps.docs.max_mb: this is said twice, first in line 7",
        "recipe.yaml:9: steps.Fit: 'Fit' cannot name a step\n  use a-z, 0-9, _ and -, a letter first",
        "recipe.yaml:10: steps.Fit.step: there is no step 'toy.fitt'\n  did you mean 'toy.fit'?",
        "recipe.yaml:11: steps.fit.epochs: the parameter 'epochs' is missing\n  epochs: passes over the data",
        "recipe.yaml:13: steps.fit.corpus: the step 'docs' has no output 'corpse'\n  did you mean 'corpus'?",
        "recipe.yaml:14: steps.fit.epoch: toy.fit has no input or parameter 'epoch'\n  did you mean 'epochs'?",
        "recipe.yaml:15: steps.fit.schedule.kind: 'kind' should be 'wsd' or 'cosine', got 'wds'",
        "recipe.yaml:15: steps.fit.schedule.warmupp: there is no field 'warmupp' here\n  did you mean 'warmup'?",
        "recipe.yaml:18: steps.more.corpus: ${fit.checkpoint} is a checkpoint, but a corpus is needed\n"
        "  the recipe makes ${docs.corpus}, ${docs.held_out}",
        "recipe.yaml:19: steps.more.model: the recipe has no step 'doc'\n  did you mean 'docs'?",
        "recipe.yaml:20: steps.more.epochs: 'epochs' should be greater than or equal to 1, got 0\n"
        "  epochs: passes over the data",
    ]


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipe.yaml: the recipe is empty"),
        ("- a", "recipe.yaml:1: a recipe is a mapping"),
        ("recipe: [", "recipe.yaml:1: this is not YAML"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2: this is not YAML"),
        ("[" * 5000, "recipe.yaml: this is not YAML"),
        ("recipe: &a [*a]", "recipe.yaml:1: recipe.0.0: this is nested too deeply"),
        ("recipe: !!python/object/apply:os.system [ls]", "recipe.yaml:1: recipe: 'recipe' must be text"),
        ("recipe: !!python/name:os.system x", "recipe.yaml:1: recipe: the tag"),
        (replaced("steps:", "stages:"), "recipe.yaml:4: stages: a recipe has no field 'stages'\n  did you mean"),
        (replaced("step: toy.read", "kind: toy.read"), "recipe.yaml:13: steps.docs: the field 'step' is missing"),
        (replaced("corpus: ${docs.corpus}\n", "\n"), "5: steps.fit.corpus: the input 'corpus' (corpus) is missing"),
        (replaced("${docs.corpus}", "docs.corpus"), "recipe.yaml:7: steps.fit.corpus: 'docs.corpus' names no artifact"),
        (replaced("${docs.corpus}", "${docs}"), "'docs' is not an artifact: say which output\n  known: corpus"),
        (replaced("${docs.corpus}", "[ ${docs.corpus} ]"), 'put "${step.output}" in quotes'),
        (replaced("${docs.corpus}", '["${docs.corpus}"]'), "the input 'corpus' takes one artifact, not a list"),
        (replaced("artifact:3f9a61", "artifact:abcdef"), "10: steps.fit.more.1: no artifact is named 'abcdef'"),
        (replaced("more:", "model: artifact:3f9a61\n    more:"), "is a corpus, but a checkpoint or adapter is needed"),
        (replaced("epochs: 2", "epochs: ${docs.corpus}"), "'epochs' is a parameter and takes no ${docs.corpus}"),
        (replaced("lr: 1e-4", "lr: .nan"), "'lr' should be a finite number, got nan"),
        (replaced("lr: 1e-4", "lr: true"), "'lr' is no switch: it takes no true"),
    ],
)  # fmt: skip
def test_one_mistake_each(text: str, said: str) -> None:
    assert said in "\n".join(mistakes(text))


def test_a_cycle_is_shown() -> None:
    text = "recipe: x\nsteps:\n" + "".join(
        f"  {name}: {{step: toy.fit, corpus: artifact:3f9a61, model: '${{{other}.checkpoint}}', epochs: 1}}\n"
        for name, other in [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
    )
    assert mistakes(text) == ["recipe.yaml:3: steps.a: the steps need each other in a circle: a → b → c → a"]


def test_own_data_is_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    there = read(GOOD, "docs.folder=texts", folder=tmp_path).steps["docs"].params
    assert there.model_dump(mode="json")["folder"] == "texts"
    assert mistakes(GOOD, "docs.folder=text", folder=tmp_path) == [
        f"--set docs.folder=text: there is no file or folder 'text' in {tmp_path}"
    ]


def test_the_content_of_own_data_is_part_of_what_is_dumped_for_the_key(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    params = read(GOOD, "docs.folder=texts", folder=tmp_path).steps["docs"].params
    seen = []
    for content in ("one", "two", "one"):
        (tmp_path / "texts" / "a.txt").write_text(content)
        seen.append(params.model_dump(mode="json", context={"folder": tmp_path})["folder"])
    assert seen[0] == seen[2] != seen[1]


def test_overrides_are_read_as_yaml_and_checked_like_the_recipe() -> None:
    recipe = read(GOOD, "seed=3", "fit.epochs=5", "fit.schedule.warmup=0.5", "fit.lr=1")
    assert recipe.seed == 3
    assert recipe.steps["fit"].params == FitParams(epochs=5, lr=1, schedule=Schedule(warmup=0.5))
    assert read(GOOD, "fit.mix=[{kind: cosine}]", "fit.mix.0.warmup=2").steps["fit"].params.mix[0].warmup == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("fit.epochs=soon", "--set fit.epochs=soon: 'epochs' should be a valid integer, got 'soon'"),
        ("fit.epoch=3", "--set fit.epoch=3: toy.fit has no input or parameter 'epoch'\n  did you mean 'epochs'?"),
        ("fti.epochs=3", "--set fti.epochs=3: the recipe has no step 'fti'\n  did you mean 'fit'?"),
        ("fit.epochs", "--set fit.epochs: an override is written name=value"),
        ("fit..epochs=1", "--set fit..epochs=1: an override is written name=value"),
        ("fit=3", "--set fit=3: 'fit' cannot be set"),
        ("seed=x", "--set seed=x: the seed must be a whole number from 0 on, got 'x'"),
        ("fit.lr=[", "--set fit.lr=[: this is not YAML"),
        ("fit.mix.3.kind=wsd", "--set fit.mix.3.kind=wsd: there is no such place in the recipe"),
        ("fit.corpus=${docs.nothing}", "--set fit.corpus=${docs.nothing}: the step 'docs' has no output 'nothing'"),
        ("fit.schedule.kind=wds", "--set fit.schedule.kind=wds: 'kind' should be 'wsd' or 'cosine', got 'wds'"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    assert mistakes(GOOD, override)[0].startswith(said)


def test_until_keeps_what_is_needed() -> None:
    recipe = read(GOOD + "  other: {step: toy.read}\n")
    assert [each.name for each in recipe.until("docs")] == ["docs"]
    assert [each.name for each in recipe.until("fit")] == ["docs", "fit"]
    assert [each.name for each in recipe.until(None)] == ["docs", "fit", "other"]
    with pytest.raises(RecipeError, match="did you mean 'other'"):
        recipe.until("othr")


def test_aliases_and_merge_keys_share_fields() -> None:
    text = (
        "recipe: x\nsteps:\n  docs: {step: toy.read}\n"
        "  a: &a\n    step: toy.fit\n    corpus: ${docs.corpus}\n    epochs: 1\n"
        "  b:\n    <<: *a\n    epochs: 2\n"
    )
    recipe = read(text)
    assert recipe.steps["b"].params == FitParams(epochs=2)
    assert recipe.steps["b"].inputs == recipe.steps["a"].inputs


@example('"\n')
@given(st.text() | st.text(alphabet="recips: \n-{}[]&*!?|>'\"#$.1a", max_size=200))
def test_any_text_gives_a_recipe_or_an_error_for_people(text: str) -> None:
    with pytest.raises(InvalidRecipe):
        parse_recipe(text, "recipe.yaml")


def test_finding_a_recipe_file_folder_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine" / "recipe.yaml"
    file.parent.mkdir()
    file.write_text(GOOD)
    assert find_recipe("mine").text == find_recipe("mine/recipe.yaml").text == GOOD
    assert find_recipe("mine").folder == file.parent
    with pytest.raises(RecipeError, match="there is no such recipe"):
        find_recipe("theirs.yaml")
    with pytest.raises(RecipeError, match=r"the folder has no recipe\.yaml"):
        find_recipe(".")


def valid(text: str) -> bool:
    return jsonschema.Draft7Validator(recipe_schema()).is_valid(yaml.safe_load(text))


def test_the_json_schema_is_one_and_agrees_with_the_checker() -> None:
    jsonschema.Draft7Validator.check_schema(recipe_schema())
    assert valid(GOOD.replace("title: no", "title: 'no'").replace("1e-4", "0.0001"))
    for old, new in [
        ("toy.fit", "toy.fitt"),
        ("epochs: 2", "epoch: 2"),
        ("epochs: 2", "epochs: 0"),
        ("epochs: 2", "schedule: {kind: wds}\n    epochs: 2"),
        ("${docs.corpus}", "docs.corpus"),
        ("recipe: toy", "name: toy"),
        ("  docs:", "  Docs:"),
        ("title: no", "title: 3"),
    ]:
        text = replaced(old, new)
        assert not valid(text), text
        assert mistakes(text)


def test_the_json_schema_of_one_step() -> None:
    schema = step_schema(registry.get_step("toy.fit"))
    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid({"step": "toy.fit", "corpus": "${a.b}", "epochs": 1, "mix": [{"kind": "cosine"}]})
    assert not validator.is_valid({"step": "toy.fit", "corpus": "${a.b}"})
    assert not validator.is_valid({"step": "toy.read", "corpus": "${a.b}", "epochs": 1})
