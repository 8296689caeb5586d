"""The recipe and the commands of `docs/ablation.md` do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from liuyi.core.recipe import parse_recipe
from liuyi.core.step import all_steps

PAGE = Path(__file__).parents[2] / "docs" / "ablation.md"
SMALL = {
    "docs.include": "[pytest, hypothesis, statsmodels]",
    "docs.max_mb": "0.6",
    "others.max_mb": "0.4",
    "tokenizer.vocab_size": "400",
    "ablation.hidden_size": "16",
    "ablation.num_hidden_layers": "1",
    "ablation.seq_len": "32",
    "ablation.batch_tokens": "256",
    "ablation.token_budget": "5120",
    "ablation.heldout_tokens": "8000",
    "ablation.init": "random",
    "ablation.seeds": "2",
}
"""The page's recipe on less text and with smaller proxies."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_recipe_and_the_commands(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(blocks("yaml")[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIUYI_")}
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"COLUMNS": "120", "HOME": str(tmp_path), "PATH": paths}
    printed = []
    (commands,) = blocks("sh")
    for command in commands.splitlines():
        words = command.split()
        if words[1] == "run":
            words += [word for field, value in SMALL.items() for word in ("--set", f"{field}={value}")]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout)
    run, report = printed
    assert re.search(r"6 of 6: arm\d-seed\d done", run), run
    assert "everything → strict" in report
    assert "Held-out other packages" in report


def test_the_recipes_are_right() -> None:
    first, second = blocks("yaml")
    recipe = parse_recipe(first, "recipe.yaml")
    assert recipe.steps["ablation"].step.name == "pretrain.ablate"
    (search,) = yaml.safe_load(second).values()
    step = all_steps()[search.pop("step")]
    step.params.model_validate({name: value for name, value in search.items() if name not in step.inputs})
    assert set(step.inputs) <= set(search)
