"""Fine-tuning, preferences and reward models by two processes: what one process makes, to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from align_support import preferences, publish, small_tokenizer
from safetensors.torch import load_file

import in_process
from in_ranks import fork_ranks
from liuyi.core.artifact import Artifact
from liuyi.core.home import Home
from liuyi.train.log import LOG_FILE
from small_models import small_model

LORA = {"method": "lora", "rank": 4}
FAST: dict[str, Any] = {"compute_dtype": "fp32", "lr": 0.01, "max_steps": 4, "seq_len": 64}
PAIRS: dict[str, Any] = {**FAST, "batch_pairs": 8, "micro_pairs": 2}
WATCHED = {"watch_every": 2, "probe_prompts": 4}
SHARD, TENSOR = {"shard": 2}, {"tensor": 2}
SLOW = pytest.mark.slow


def inputs(home: Home, step: str) -> dict[str, Artifact]:
    tokenizer = small_tokenizer()
    table = preferences()
    given = publish(home, tokenizer, table, small_model(tokenizer.vocab_size, std=0.1, kv_heads=2))
    if step != "finetune.sft":
        return given
    staging = home.store.stage("chats")
    answered = [[*row["prompt"], {"role": "assistant", "content": row["chosen"]}] for row in table]
    columns = {"id": [row["id"] for row in table], "messages": [json.dumps(messages) for messages in answered]}
    pq.write_table(pa.table(columns), staging.path / "chats.parquet")
    return {"model": given["model"], "chats": home.store.publish(staging)}


@pytest.mark.parametrize(
    ("step", "params", "layout"),
    [
        pytest.param("finetune.sft", {**FAST, **LORA, "batch_tokens": 256, "neftune_alpha": 5}, {}, marks=SLOW),
        ("finetune.sft", {**FAST, "batch_tokens": 256, "ema": 0.9, "optimiser": "adamw"}, SHARD),
        ("align.preference", {**PAIRS, **LORA, "lr": 1e-3, **WATCHED}, {}),
        pytest.param("align.preference", {**PAIRS, **LORA, "lr": 1e-3, **WATCHED}, SHARD, marks=SLOW),
        pytest.param("align.preference", {**PAIRS, "objective": "kto", "watch": False}, SHARD, marks=SLOW),
        pytest.param("align.reward", {**PAIRS, "heldout": 0.3}, SHARD, marks=SLOW),
        pytest.param("align.preference", {**PAIRS, **WATCHED}, TENSOR, marks=SLOW),
        pytest.param("align.reward", {**PAIRS, "heldout": 0.3}, TENSOR, marks=SLOW),
    ],
    ids=[
        "sft-noise",
        "sft-average-shard",
        "dpo-lora",
        "dpo-lora-shard",
        "kto-shard",
        "reward-shard",
        "dpo-tensor",
        "reward-tensor",
    ],
)
def test_two_processes_learn_what_one_does(
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    params: dict[str, Any],
    layout: dict[str, Any],
) -> None:
    fork_ranks(monkeypatch)
    given, made = inputs(home, step), []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        workdir.mkdir()
        divided = layout if processes > 1 else {}
        (output,) = in_process.run_step(home, workdir, step, given, **params, processes=processes, **divided).values()
        made.append(output)
    one, two = made
    (weights,) = [path.name for path in one.path.glob("*.safetensors")]
    ours, theirs = load_file(two.file(weights)), load_file(one.file(weights))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4, msg=lambda text, name=name: name + text)
    losses = [
        [json.loads(line)["loss"] for line in model.file(LOG_FILE).read_text().splitlines()] for model in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] != losses[0][0]
