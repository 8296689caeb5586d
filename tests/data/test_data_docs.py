"""The recipe and the commands of `docs/data.md` do what the page says."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from web_support import Page, served

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
MILL = "The miller opened the gate when the tide had turned, and the wheel began to move slowly. "


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return str(found)


def prepare(folder: Path) -> None:
    """What the recipe names."""
    (folder / "texts").mkdir()
    (folder / "texts/a.md").write_text("# A\n\nA text.\n")
    (folder / "texts/b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a row"}\n{"text": ""}\nbroken\n'))
    (folder / "chats").mkdir()
    rows = [{"instruction": f"Say {n}", "output": str(n)} for n in range(20)]
    (folder / "chats/a.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"Which is larger, {n}?", "chosen": "yes", "rejected": "no"} for n in range(20)]
    (folder / "preferences.json").write_text(json.dumps(pairs))


@pytest.mark.slow
def test_the_recipe_and_the_commands(tmp_path: Path) -> None:
    prepare(tmp_path)
    pages: dict[str, Page] = {
        "/": f"<article><h1>Mill</h1><p>{MILL * 5}</p><a href='/b'>b</a></article>",
        "/b": f"<article><h1>Gate</h1><p>{MILL[::-1] * 5}</p></article>",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIUYI_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = {}
    with served(pages) as site:
        recipe = block("yaml").replace("https://docs.example.org/", site.url)
        local = "    allow_networks: [127.0.0.1]\n    delay_s: 0\n"
        recipe = re.sub(r"(    step: data.crawl\n)", rf"\1{local}", recipe)
        (tmp_path / "recipe.yaml").write_text(recipe)
        for command in block("sh").splitlines():
            done = subprocess.run(
                command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed[command] = done.stdout + done.stderr
        assert {"/", "/b"} <= set(site.paths())
    run, own, chats, steps = printed.values()
    assert "2 files or rows rejected" in run
    assert "1 × not JSON" in run
    assert "16 conversations to learn from, 4 held out" in run
    assert "2 documents" in run
    assert "A text." in own
    assert "Say" in chats
    assert "allow_networks" in steps


def test_the_table_names_real_steps_and_extras() -> None:
    import tomllib

    from liuyi.core.step import all_steps

    text = PAGE.read_text(encoding="utf-8")
    extras = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"`(data\.\w+)`", text)) <= set(all_steps())
    assert set(re.findall(r"liuyi\[(\w+)\]", text)) <= set(extras)
