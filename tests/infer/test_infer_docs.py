"""The examples of `docs/serving.md` do what they say, on a live server."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from infer_support import LiveServer, backend_over, live_server, tiny_model

from liuyi.cli import serve
from liuyi.cli.main import cli
from liuyi.infer.engine import Engine
from liuyi.infer.tools.formats import FORMATS
from liuyi.model.tokenizer import Tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def roomy(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    model = tiny_model(max_position_embeddings=2048)
    with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=4))}) as live:
        yield live


def test_examples_run(roomy: LiveServer) -> None:
    examples = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(examples) >= 6
    names: dict[str, object] = {}
    for number, example in enumerate(examples):
        code = example.replace("http://127.0.0.1:8000", roomy.url)
        exec(compile(code, f"docs/serving.md, example {number + 1}", "exec"), names)
    assert names["arguments"]


def test_every_format_of_tool_calls_is_listed() -> None:
    assert {name for name in FORMATS if f"| `{name}` |" in TEXT} == set(FORMATS)


def commands() -> list[list[str]]:
    """The arguments of every `liuyi` in the page's shell blocks."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("liuyi ")]


def test_commands_about_keys_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = [args for args in commands() if args[0] == "keys"]
    assert len(run) >= 3
    for args in run:
        done = CliRunner().invoke(cli, args)
        assert done.exit_code == 0, done.output


def test_commands_that_serve_have_only_options_that_there_are() -> None:
    run = [args[1:] for args in commands() if args[0] == "serve"]
    assert len(run) >= 8
    for args in run:
        with serve.command.make_context("serve", list(args)) as ctx:
            assert ctx.params


def test_every_figure_is_listed(roomy: LiveServer) -> None:
    told = set(re.findall(r"# TYPE (\w+)", httpx.get(f"{roomy.url}/metrics").text))
    assert told == set(re.findall(r"`(liuyi_\w+)`", TEXT))
