"""Milestones of fine-tuning: an adapter with noise and a moving average is replayed from them like a pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune_sft import chat, publish_chats, publish_model

import in_process
from liuyi.core.home import Home
from liuyi.model.tokenizer import train_bpe
from liuyi.train.replay import replay
from small_models import small_model


@pytest.mark.parametrize(
    "more",
    [pytest.param({"method": "lora", "rank": 2, "neftune_alpha": 5.0}, marks=pytest.mark.slow), {"ema": 0.9}],
    ids=["lora", "ema"],
)
def test_recorded_steps_of_fine_tuning_come_out_the_same(
    home: Home, tmp_path: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("liuyi.train.replay.derived_seed", lambda seed, step: in_process.SEED)
    tokenizer = train_bpe(["turn the red blue green white lamp on off please answer"], 290)
    rows = [
        (f"c{n}", chat(f"turn the {'red' if n % 2 else 'blue'} lamp on", f"{'red' if n % 2 else 'blue'}"))
        for n in range(24)
    ]
    inputs = {
        "model": publish_model(home, tokenizer, small_model(tokenizer.vocab_size)),
        "chats": publish_chats(home, rows),
    }
    params = {
        "max_steps": 8,
        "seq_len": 64,
        "batch_tokens": 128,
        "keep_every_steps": 3,
        "compute_dtype": "fp32",
        **more,
    }
    made = in_process.run_step(home, tmp_path, "finetune.sft", inputs, **params)
    in_process.record(home, "sft", "finetune.sft", params, made)
    found = replay(home, "last", "sft", 7)
    assert [row["step"] for row in found.again] == [6, 7]
    assert found.again == found.recorded
