"""Full training by Liuyi's own loop; `benchmarks/train/full.py` starts it. As `hf_full.py`, whose words it speaks:

    python liuyi_full.py MODEL ROWS OUT SETTINGS

SETTINGS is JSON: `rows` in a step, `dtype` of the products, `compile`, `lr`, `threads`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liuyi.model.checkpoint import load_model
from liuyi.train.batches import Batch
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example, lay_out
from liuyi.train.parallel.apply import parallelize
from liuyi.train.schedule import make_schedule
from liuyi.train.world import World

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # From here on, what libraries print is no answer.


def say(**answer: Any) -> None:
    ANSWERS.write(json.dumps(answer) + "\n")
    ANSWERS.flush()


class TakingTurns:
    """Waits to be asked for each step, and times it: reading the batch and writing the log are part of one."""

    def wait(self) -> None:
        if not sys.stdin.readline():
            say(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            os._exit(0)
        self.started = time.perf_counter()

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        say(loss=shown["loss"], seconds=time.perf_counter() - self.started)
        self.wait()

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None: ...


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    rows = json.loads(data.read_text())
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    model, each = load_model(folder), settings["rows"]
    parallelize(model, World(), compute_dtype=dtype)
    turns = TakingTurns()

    def batches(index: int) -> list[Batch]:
        if index == 0:
            turns.wait()
        chosen = [np.array(row) for row in rows[index * each : (index + 1) * each]]
        return [lay_out([[Example(row, np.ones(len(row), bool))] for row in chosen], len(chosen[0]), 0)]

    trainer = Trainer(
        model,
        batches,
        CausalLM(dtype),
        Optimiser(model, OptimiserConfig("adamw", lr=settings["lr"], betas=(0.9, 0.95))),
        make_schedule("constant", steps=len(rows) // each),
        config=LoopConfig(len(rows) // each, checkpoint_every_s=3600),
        workdir=out,
        observer=turns,
    )
    trainer.run()


if __name__ == "__main__":
    main()
