"""SFT of an adapter by this project; `benchmarks/train/sft.py` starts it.

    python liuyi_sft.py MODEL DATA OUT SETTINGS

What `finetune.sft` runs: its packed rows, batches, objective, optimiser and loop.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import Clock

from liuyi.model.checkpoint import load_model
from liuyi.model.lora import LoraConfig, lora_adapter
from liuyi.train.batches import Batch, ShuffledBatches
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example, PackedRows
from liuyi.train.parallel.apply import parallelize
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import Tuning, prepare
from liuyi.train.world import World


def batches(given: dict[str, Any], settings: dict[str, Any]) -> ShuffledBatches[Batch]:
    """The batches of `finetune.sft` for these conversations."""
    examples = [Example(np.array(row["tokens"]), np.array(row["learnt"], dtype=np.bool_)) for row in given["train"]]
    rows = PackedRows(examples, settings["seq_len"], given["pad_id"])
    return ShuffledBatches(
        rows, batch_rows=settings["batch_rows"], seed=settings["seed"], micro_rows=settings["micro_rows"]
    )


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    lora = LoraConfig(rank=settings["rank"], alpha=settings["alpha"])
    model = load_model(folder)
    dtype = torch.bfloat16
    prepare(model, Tuning("lora", lora), settings["seed"], dtype)
    parallelize(model, World(), compute_dtype=dtype)
    clock = Clock()
    trainer = Trainer(
        model,
        batches(json.loads(data.read_text()), settings),
        CausalLM(dtype),
        Optimiser(model, OptimiserConfig("adamw", lr=settings["lr"])),
        make_schedule("constant", steps=settings["steps"], warmup_steps=0),
        config=LoopConfig(settings["steps"]),
        workdir=out / "run",
        observer=clock,
    )
    clock.times = [time.perf_counter()]
    trainer.run()
    lora_adapter(model, lora).save(out / "adapter")
    log = [json.loads(line) for line in (out / "run" / LOG_FILE).read_text().splitlines()]
    seconds = np.diff(clock.times).tolist()
    print(json.dumps({"step_s": seconds, "losses": [row["loss"] for row in log]}))


if __name__ == "__main__":
    main()
