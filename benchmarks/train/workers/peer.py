"""What the workers of TRL and of Hugging Face's Trainer have in common: their settings, their adapter, their clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}
"""Of every peer: the rows in the order given, AdamW as one function, nothing kept, every step told."""


def tuning(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Of TRL's trainers, on top of `SETTINGS`."""
    return {
        "output_dir": str(out / "run"),
        "per_device_train_batch_size": settings["micro"],
        "gradient_accumulation_steps": settings["accumulate"],
        "max_length": settings["seq_len"],
        "learning_rate": settings["lr"],
        "bf16": True,
        "seed": settings["seed"],
    }


def adapter(settings: dict[str, Any]) -> LoraConfig:
    """LoRA on every projection."""
    from peft import LoraConfig  # Not above: full training, whose memory is measured, has no need of it.

    return LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )


def begin_alike(model: PeftModel, settings: dict[str, Any]) -> None:
    """Give its adapter the numbers that ours begins with, so that their losses can be laid on one another."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = set_peft_model_state_dict(model, load_file(Path(settings["start"], "adapter_model.safetensors")))
    if found.unexpected_keys:
        raise SystemExit(f"not in the model: {found.unexpected_keys}")


class StepClock(TrainerCallback):
    """The seconds of every optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)
