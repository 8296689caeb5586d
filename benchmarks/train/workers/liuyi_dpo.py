"""DPO of an adapter by this project; `benchmarks/train/dpo.py` starts it.

    python liuyi_dpo.py MODEL DATA OUT SETTINGS

What `align.preference` runs: its packed pairs, their reference, batches, objective, optimiser and loop.
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

from liuyi.align.answers import Answers
from liuyi.align.pairs import Pair, PairRows
from liuyi.align.preference import PairObjective
from liuyi.model.checkpoint import load_model
from liuyi.model.lora import LoraConfig, lora_adapter
from liuyi.train.batches import ShuffledBatches
from liuyi.train.interfaces import LoopConfig
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example
from liuyi.train.parallel.apply import parallelize
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import Tuning, prepare
from liuyi.train.world import World


def pairs(given: dict[str, Any], settings: dict[str, Any]) -> PairRows:
    """The pairs as `align.preference` has them."""
    found = []
    for number, row in enumerate(given["train"]):
        sides = []
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            learnt = np.arange(len(row["prompt_ids"]) + len(answer)) >= len(row["prompt_ids"])
            sides.append(Example(np.array(row["prompt_ids"] + answer), learnt))
        found.append(Pair(str(number), *sides))
    return PairRows(found, settings["seq_len"], given["pad_id"])


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    lora = LoraConfig(rank=settings["rank"], alpha=settings["alpha"])
    model = load_model(folder)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    prepare(model, Tuning("lora", lora), settings["seed"], dtype)
    parallelize(model, World(), compute_dtype=dtype)
    rows = pairs(json.loads(data.read_text()), settings)
    batches: ShuffledBatches[Answers] = ShuffledBatches(
        rows, batch_rows=settings["batch_pairs"], seed=settings["seed"], micro_rows=settings["micro_pairs"]
    )
    started = time.perf_counter()
    rows.take_reference(batches, model, dtype)
    reference_s = time.perf_counter() - started
    clock = Clock()
    trainer = Trainer(
        model,
        batches,
        PairObjective("dpo", beta=0.1, compute_dtype=dtype),
        Optimiser(model, OptimiserConfig("adamw", lr=settings["lr"], betas=(0.9, 0.99))),
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
    print(json.dumps({"reference_s": [reference_s], "step_s": seconds, "losses": [row["loss"] for row in log]}))


if __name__ == "__main__":
    main()
