"""SFT of an adapter by TRL, in the peer's own environment; `benchmarks/train/sft.py` starts it.

    python trl_sft.py MODEL DATA OUT SETTINGS

DATA is the conversations as tokens, in the order to learn them. SETTINGS is JSON: rows computed at once, how many of
these make a step, whether TRL packs them. Prints JSON with the seconds of every step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """When each optimiser step began and ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    given = json.loads(data.read_text())
    rows = [
        {
            "input_ids": row["tokens"],
            "labels": [token if said else -100 for token, said in zip(row["tokens"], row["learnt"], strict=True)],
        }
        for row in given["train"]
    ]
    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    trainer = SFTTrainer(
        model,
        SFTConfig(
            output_dir=str(out / "run"),
            per_device_train_batch_size=settings["micro"],
            gradient_accumulation_steps=settings["accumulate"],
            packing=settings["packing"],
            max_length=settings["seq_len"],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=True,
            gradient_checkpointing=False,
            logging_strategy="steps",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=settings["seed"],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
        peft_config=LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(out / "adapter")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"step_s": clock.seconds, "losses": losses}))


if __name__ == "__main__":
    main()
