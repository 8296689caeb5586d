"""The examples of `docs/serving.md` do what they say, on a live server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from infer_support import LiveServer, backend_over, live_server, tiny_model

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
