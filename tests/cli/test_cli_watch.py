"""The line of a step that runs: what it shows fits the terminal, and says what it means."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from liuyi.cli.watch import _View, joined, shown_figure

FIGURES = {
    "loss": 2.3123,
    "lr": 0.0123456,
    "grad_norm": 0.4321,
    "tok_s": 9123.4,
    "learnt_tok_s": 3012.2,
    "bf16_mfu": 0.612,
    "memory_bytes": 1.3e9,
}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_figure_is_seen_at_any_width(width: int) -> None:
    out = Console(width=width, file=io.StringIO(), record=True, force_terminal=True, color_system=None)
    view = _View(out)
    began = time.time() - 30
    view.take({"event": "step", "step": "pretrain", "status": "running", "position": 3, "steps": 9, "time": began})
    for done in (10, 180):
        event = {"event": "progress", "step": "pretrain", "done": done, "total": 400, "unit": "steps"}
        view.take({**event, "shown": {**FIGURES, "none": None}, "time": began + done / 10})
    out.print(view.bar())
    lines = out.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == {60: 3, 80: 3, 200: 1}[width]
    whole = "\n".join(lines)
    for name, value in FIGURES.items():
        assert shown_figure(name, value) in whole, name
    assert "180/400 steps" in whole
    assert "s left" in whole
    assert "…" not in whole


def test_a_long_name_gives_way_to_how_long_it_takes() -> None:
    out = Console(width=80, file=io.StringIO(), record=True, force_terminal=True, color_system=None)
    view = _View(out)
    began = time.time() - 30
    name = "continued-pretraining-on-the-handbooks-of-all-departments"
    view.take({"event": "step", "step": name, "status": "running", "position": 3, "steps": 9, "time": began})
    for done in (10, 180):
        event = {"event": "progress", "step": name, "done": done, "total": 400, "unit": "steps", "shown": {}}
        view.take({**event, "time": began + done / 10})
    out.print(view.bar())
    (line,) = out.export_text().splitlines()
    assert len(line) <= 80
    assert "3/9 continued-pretraining" in line
    assert "180/400 steps" in line
    assert line.rstrip().endswith("s left")


def test_figures_in_words() -> None:
    assert shown_figure("tok_s", 9123.4) == "9,123 tok/s"
    assert shown_figure("learnt_tok_s", 31.24) == "learnt 31.24 tok/s"
    assert shown_figure("pairs_s", 2.5) == "2.5 pairs/s"
    assert shown_figure("bf16_mfu", 0.612) == "61% of bf16 peak"
    assert shown_figure("memory_bytes", 1.5 * 2**30) == "1.5 GiB"
    assert shown_figure("gpu_memory_bytes", 2**30) == "GPU 1.0 GiB"
    assert shown_figure("ttft_s", 0.5) == "ttft_s 0.5"
    assert shown_figure("grad_norm", 1.5e30) == "grad_norm 1.5e+30"
    assert shown_figure("grad_norm", float("inf")) == "grad_norm inf"


def test_parts_are_joined_as_they_fit() -> None:
    assert joined(["aa", "bb", "cc"], 7) == ["aa · bb", "cc"]
    assert joined(["a" * 9, "b"], 4) == ["a" * 9, "b"]
    assert joined([], 4) == []
