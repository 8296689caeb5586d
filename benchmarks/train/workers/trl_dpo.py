"""DPO of an adapter by TRL, in the peer's own environment; `benchmarks/train/dpo.py` starts it.

    python trl_dpo.py MODEL DATA OUT SETTINGS

DATA is the pairs as tokens, in the order to learn them. SETTINGS is JSON: pairs computed at once, how many of these
make a step, whether log-probabilities of the reference are computed first. Prints JSON with the seconds of all there is
to do: the reference and every step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peer import SETTINGS, StepClock, adapter, begin_alike, tuning
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class Tokenised(DPOTrainer):
    """TRL's trainer on pairs that are tokens already, and the time that it takes for the reference."""

    reference_s = 0.0

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_s = time.perf_counter() - started
        return dataset


def main() -> None:
    folder, data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(settings["threads"])
    given = json.loads(data.read_text())
    clock = StepClock()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    trainer = Tokenised(
        model,
        args=DPOConfig(
            **SETTINGS,
            **tuning(out, settings) | {"bf16": dtype == torch.bfloat16},
            precompute_ref_log_probs=settings["precompute"],
            beta=0.1,
            adam_beta2=0.99,
        ),
        train_dataset=Dataset.from_list(given["train"]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
        peft_config=adapter(settings),
    )
    begin_alike(trainer.model, settings)
    trainer.train()
    trainer.model.save_pretrained(out / "adapter")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    reference_s = trainer.reference_s
    print(json.dumps({"reference_s": [reference_s], "step_s": clock.seconds, "losses": losses}))


if __name__ == "__main__":
    main()
