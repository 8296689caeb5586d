"""The recipe of `docs/quality.md` does what the page says."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data_support import prose

from liuyi.core.words import split
from liuyi.data.select.thresholds import Thresholds

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
_RUBBISH = split("click here to win a free prize with the best cheap offer of the day and call us now for delivery")


def rubbish(number: int) -> str:
    rng = random.Random(number)
    return "\n".join(" ".join(rng.choices(_RUBBISH, k=12)).capitalize() + f" code{number}." for _ in range(7))


def prepare(folder: Path) -> None:
    """What the recipe names: texts of both kinds, good ones in files of several, and rows with labels."""
    (folder / "texts").mkdir()
    (folder / "good").mkdir()
    for number in range(60):
        (folder / f"texts/{number}.txt").write_text((prose if number % 3 else rubbish)(1000 + number))
    for number in range(8):
        rows = [{"text": prose(10 * number + each)} for each in range(5)]
        (folder / f"good/{number}.json").write_text(json.dumps(rows))
    rows = [{"text": rubbish(number), "label": "bad"} for number in range(40)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_the_recipe(tmp_path: Path) -> None:
    prepare(tmp_path)
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "recipe.yaml").write_text(recipe)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIUYI_")}
    liuyi = [str(Path(sys.executable).with_name("liuyi")), "--home", str(tmp_path / "home")]
    done = subprocess.run(
        [*liuyi, "run", "recipe.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, printed
    assert "Learnt from 40 good and 40 bad documents" in printed
    assert "60 documents scored" in printed
    assert "20 low quality" in printed


def test_the_thresholds_of_the_page_are_those_of_selection() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Selecting")[2].partition("##")[0]
    named = set(re.findall(r"`((?:min|max)_\w+)`", table))
    assert len(named) == 4
    assert named <= set(Thresholds.model_fields)
