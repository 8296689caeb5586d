"""Milestones of alignment: steps are taken again from them, under the collapse watch and with a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from align_support import preferences, publish, small_model, small_tokenizer

import in_process
from liuyi.core.home import Home
from liuyi.train.replay import replay


@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("align.preference", {"method": "lora", "rank": 2, "watch_every": 2}, marks=pytest.mark.slow),
        ("align.reward", {}),
    ],
    ids=["preference", "reward"],
)
def test_recorded_steps_of_alignment_come_out_the_same(
    home: Home, tmp_path: Path, name: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("liuyi.train.replay.derived_seed", lambda seed, step: in_process.SEED)
    tokenizer = small_tokenizer()
    inputs = publish(home, tokenizer, preferences(), small_model(tokenizer.vocab_size))
    params = {"max_steps": 6, "batch_pairs": 4, "keep_every_steps": 2, "compute_dtype": "fp32", **more}
    made = in_process.run_step(home, tmp_path, name, inputs, **params)
    in_process.record(home, "it", name, params, made)
    found = replay(home, "last", "it", 5)
    assert [row["step"] for row in found.again] == [4, 5]
    assert found.again == found.recorded
