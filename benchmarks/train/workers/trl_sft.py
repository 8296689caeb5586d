"""SFT of an adapter by TRL, in the peer's own environment; `benchmarks/train/sft.py` starts it.

    python trl_sft.py MODEL DATA OUT SETTINGS

DATA is the conversations as tokens, in the order to learn them. SETTINGS is JSON: rows computed at once, how many of
these make a step, whether TRL packs them. Prints JSON with the seconds of every step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peer import SETTINGS, StepClock, adapter, begin_alike, tuning
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


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
    clock = StepClock()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    trainer = SFTTrainer(
        model,
        SFTConfig(**SETTINGS, **tuning(out, settings), packing=settings["packing"], adam_beta2=0.95),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
        peft_config=adapter(settings),
    )
    begin_alike(trainer.model, settings)
    trainer.train()
    trainer.model.save_pretrained(out / "adapter")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"step_s": clock.seconds, "losses": losses}))


if __name__ == "__main__":
    main()
