"""`liuyi init`: whatever its user has, the recipe is right and runs as it is."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from liuyi.cli.main import cli
from liuyi.cli.samples import PLACES, hours
from liuyi.model.tokenizer import train_bpe
from small_models import save_llama


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Data of one's own, in a folder whose name needs quoting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIUYI_HOME", raising=False)
    folder = tmp_path / "Ann's data: #1"
    (folder / "texts").mkdir(parents=True)
    (folder / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / "model" / name).write_text("{}")
    (folder / "chats.jsonl").write_text("{}")
    return {"texts": folder / "texts", "chats": folder / "chats.jsonl", "model": folder / "model"}


@pytest.mark.parametrize("given", list(product([False, True], repeat=3)))
def test_the_recipe_fits_what_there_is(given: tuple[bool, bool, bool], own: dict[str, Path]) -> None:
    named = {name: path for (name, path), is_given in zip(own.items(), given, strict=True) if is_given}
    made = call("init", "mine", *[word for name, path in named.items() for word in (f"--{name}", str(path))])
    assert made.exit_code == 0, made.output
    assert made.stdout.endswith("now: cd mine && liuyi run .\n")
    text = Path("mine/recipe.yaml").read_text()
    recipe = yaml.safe_load(text)
    schema = json.loads(Path("mine/.liuyi/recipe.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(yaml.safe_load(text.replace(" 5e-5", " 5.0e-5")))
    checked = call("run", "mine", "--check")
    assert checked.stdout.endswith(f"is right: {len(recipe['steps'])} steps\n"), checked.output
    steps = recipe["steps"]
    assert steps.get("base", {}).get("folder") == (str(own["model"]) if "model" in named else None)
    if "texts" in named:
        assert steps["docs"]["path"] == str(own["texts"])
    if "chats" in named:
        assert steps["chats"]["path"] == str(own["chats"])
    assert ("docs" in steps) == ("texts" in named or "model" not in named)
    assert ("chats" in steps) == ("chats" in named or "texts" not in named)
    assert ("tokenizer" in steps) == ("model" not in named)
    assert Path("mine/texts").exists() == ("docs" in steps and "texts" not in named)
    assert Path("mine/chats.jsonl").exists() == ("chats" in steps and "chats" not in named)


def test_data_inside_the_folder_are_named_from_there(own: dict[str, Path]) -> None:
    Path("mine/books").mkdir(parents=True)
    Path("mine/books/a.txt").write_text("text")
    Path("mine/.gitignore").write_text("*.log")
    assert call("init", "mine", "--texts", "mine/books").exit_code == 0
    assert yaml.safe_load(Path("mine/recipe.yaml").read_text())["steps"]["docs"]["path"] == "books"
    assert Path("mine/.gitignore").read_text() == "*.log\n.liuyi/\n"


@pytest.mark.parametrize("there", ["recipe.yaml", "chats.jsonl", "texts/a.txt"])
def test_nothing_of_the_user_is_written_over(there: str, own: dict[str, Path]) -> None:
    path = Path("mine", there)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = sorted(Path("mine").rglob("*"))
    refused = call("init", "mine")
    assert refused.exit_code == 1
    assert "this is here already" in refused.stderr
    assert sorted(Path("mine").rglob("*")) == before
    assert path.read_text() == "mine"


def test_a_model_that_is_not_there_or_not_whole_is_told_at_once(own: dict[str, Path]) -> None:
    for name, told in (
        ("HuggingFaceTB/SmolLM2-135M", "hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M"),
        ("./models/none", "models/none: --model: there is no such folder"),
    ):
        refused = call("init", "mine", "--model", name)
        assert refused.exit_code == 1
        assert told in refused.stderr
    (own["model"] / "tokenizer.json").unlink()
    refused = call("init", "mine", "--model", str(own["model"]))
    assert "the folder has no tokenizer.json" in refused.stderr
    assert not Path("mine").exists()


def test_samples_are_the_same_every_time_and_follow_their_rule(own: dict[str, Path]) -> None:
    call("init", "one")
    call("init", "two")
    for file in [path for path in Path("one").rglob("*") if path.is_file() and path.suffix in (".md", ".jsonl")]:
        assert file.read_bytes() == Path("two", *file.parts[1:]).read_bytes()
    rows = [json.loads(line)["messages"] for line in Path("one/chats.jsonl").read_text().splitlines()]
    assert len(rows) == len({row[0]["content"] for row in rows}) > 600
    for question, answer in rows:
        (place,) = [place for place in PLACES if f" {place} " in f"{question['content'][:-1]} "]
        day = next(word.strip(",?") for word in question["content"].split() if word.strip(",?").endswith("day"))
        opens, closes = hours(place, day)
        assert answer["content"] in (f"It opens at {opens}.", f"It closes at {closes}.")


@pytest.mark.slow
def test_a_recipe_over_a_base_model_runs(own: dict[str, Path]) -> None:
    """Shortened, on the sample's data; that the sample itself runs, the test of the README shows."""
    assert call("init", "one").exit_code == 0
    texts = [path.read_text() for path in sorted(Path("one/texts").iterdir())]
    save_llama(own["model"], train_bpe(texts, 512), 512)
    made = call("init", "two", "--model", str(own["model"]), "--texts", "one/texts", "--chats", "one/chats.jsonl")
    assert made.exit_code == 0, made.output
    sets = ["select.heldout_fraction=0.15", "before.items=8", "after.items=8", "sft.epochs=1"]
    ran = call("--home", "two/.liuyi", "run", "two", *[word for each in sets for word in ("--set", each)])
    assert ran.exit_code == 0, ran.output
    assert "Effect report" in ran.stdout
    (run,) = json.loads(call("--home", "two/.liuyi", "runs", "--json").stdout)
    assert {step["status"] for step in run["steps"]} == {"done"}
