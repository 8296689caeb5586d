"""`liuyi data mix`: the plan of a recipe or of tokens at hand, before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from liuyi.cli.main import cli
from liuyi.core.home import Home


def tokens(home: Home, documents: int) -> str:
    """The digest of a tokens artifact of documents of ten tokens."""
    staging = home.store.stage("tokens")
    np.zeros(10 * documents, "<u2").tofile(staging.path / "tokens.bin")
    rows = [{"id": f"d{at}", "offset": 10 * at, "tokens": 10, "bytes": 40} for at in range(documents)]
    pq.write_table(pa.Table.from_pylist(rows), staging.path / "documents.parquet")
    about = {"dtype": "uint16", "tokens": 10 * documents, "documents": documents, "bytes": 40 * documents}
    (staging.path / "tokens.json").write_text(json.dumps({**about, "vocab_size": 300, "eos_id": 0}))
    return home.store.publish(staging).digest


class Desk:
    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.folder = home, folder
        self.web, self.code = tokens(home, 90), tokens(home, 10)

    def mix(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--home", str(self.home.path), "data", "mix", *arguments])

    def recipe(self, text: str) -> str:
        path = self.folder / "recipe.yaml"
        path.write_text(f"recipe: mixture\nsteps:\n{text}")
        return str(path)


@pytest.fixture
def desk(home: Home, tmp_path: Path) -> Desk:
    return Desk(home, tmp_path)


def test_tokens_at_hand(desk: Desk) -> None:
    done = desk.mix(f"web={desk.web}", f"code={desk.code}", "--weights", "web=1,code=3", "--tokens", "800", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    web, code = said["sources"]
    assert (web["source"], web["tokens_there"], web["asked"], web["tokens_taken"]) == ("web", 900, "25.0%", 400)
    assert (code["epochs"], code["got"]) == (4.0, "50.0%")
    assert said["warnings"] == [
        "code: asked for 6.0 passes, may be gone through 4 times; the rest is given to the others"
    ]


def test_digests_alone_are_numbered(desk: Desk) -> None:
    said = json.loads(desk.mix(desk.web, desk.code, "--json").output)
    assert [one["source"] for one in said["sources"]] == ["source1", "source2"]
    assert said["tokens"] == 1000


def test_a_recipe_whose_sources_are_there(desk: Desk) -> None:
    recipe = desk.recipe(
        f"  mix:\n    step: data.mix\n    sources: ['artifact:{desk.web}', 'artifact:{desk.code}']\n"
        "    labels: [web, code]\n    temperature: 2\n"
    )
    done = desk.mix(recipe, "--set", "mix.token_budget=400")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split("  ")[0] == "source"
    assert "75.0%" in lines[1]
    assert "400 tokens of 400 asked for" in done.output


def test_a_recipe_whose_sources_have_yet_to_be_made(desk: Desk) -> None:
    recipe = desk.recipe(
        f"  first:\n    step: data.mix\n    sources: ['artifact:{desk.web}']\n"
        "  second:\n    step: data.mix\n    sources: ['${first.tokens}']\n"
    )
    done = desk.mix(recipe)
    assert done.exit_code == 1
    assert "2 steps mix" in done.output
    done = desk.mix(recipe, "--step", "second")
    assert done.exit_code == 1
    assert "'first' has not been run" in done.output


def test_what_is_wrong_is_said(desk: Desk) -> None:
    wrong = desk.mix(f"web={desk.web}", f"code={desk.code}", "--weights", "wob=1")
    assert "there is no source 'wob'" in wrong.output
    assert "did you mean 'web'" in wrong.output
    assert "one of weights, temperature" in desk.mix(f"a={desk.web}", "--weights", "a=1", "--temperature", "2").output
    assert "--set and --step belong to a recipe" in desk.mix(desk.web, "--step", "mix").output
    assert "changed by --set" in desk.mix("quickstart", "--max-epochs", "2").output
    assert "no step of this recipe mixes" in desk.mix("quickstart").output
