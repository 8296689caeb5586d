"""Full training by Hugging Face's Trainer, in the peer's own environment; `benchmarks/train/full.py` starts it.

    python hf_full.py MODEL ROWS OUT SETTINGS

ROWS is a JSON file with the rows of token ids in the order to learn them. SETTINGS is JSON: `rows` in a step, `dtype`
of the weights, `autocast`, `compile`, `lr`, `threads`. It waits for a line on stdin before each step, and prints each
step's loss and seconds as JSON; when stdin ends, the most memory that it ever held, in bytes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peer import SETTINGS
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # From here on, what libraries print is no answer.


def say(**answer: Any) -> None:
    ANSWERS.write(json.dumps(answer) + "\n")
    ANSWERS.flush()


class TakingTurns(TrainerCallback):
    """Waits to be asked for each step, and times it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not sys.stdin.readline():
            say(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            os._exit(0)
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            say(loss=logs["loss"], seconds=time.perf_counter() - self.started)


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    rows = [{"input_ids": row, "labels": row} for row in json.loads(data.read_text())]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa"),
        TrainingArguments(
            **SETTINGS,
            output_dir=str(out),
            per_device_train_batch_size=settings["rows"],
            learning_rate=settings["lr"],
            adam_beta2=0.95,
            bf16=settings["autocast"],
            torch_compile=settings["compile"],
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[TakingTurns()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
