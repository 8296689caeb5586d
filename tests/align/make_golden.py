"""Writes `golden.json`: losses and gradient norms of trl's trainers on a small model. Needs `pip install trl`.

The policy is `small_model(…, seed=2)`, the reference `seed=1`; the reward model is the policy with a random value head.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from align_support import golden_head, preferences, small_model, small_tokenizer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from liuyi.align.labels import encode_labels
from liuyi.align.pairs import encode_pairs
from liuyi.model.checkpoint import save_model
from liuyi.model.reward import RewardModel, save_reward
from liuyi.train.packing import Example

PAD = 3
SETTINGS: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
}
MARGINS = [0.0, 0.5, 1.0, 0.0, 2.0]


def rows() -> list[dict[str, Any]]:
    """Answers of different lengths."""
    table = preferences(5)
    for number, row in enumerate(table):
        row["chosen"] += " on" * number
        row["rejected"] += " off" * (3 - number % 3)
        row["margin"] = MARGINS[number]
    return table


def padded(examples: Sequence[Example], prefix: str = "") -> dict[str, torch.Tensor]:
    """Rows padded at their ends, as trl's collators make them."""
    longest = max(map(len, examples))

    def fill(values: Callable[[Example], Any], value: int) -> torch.Tensor:
        return torch.tensor([[*values(example), *[value] * (longest - len(example))] for example in examples])

    return {
        f"{prefix}input_ids": fill(lambda example: example.tokens.tolist(), PAD),
        f"{prefix}attention_mask": fill(lambda example: [1] * len(example), 0),
        f"{prefix}completion_mask": fill(lambda example: example.learnt.astype(int).tolist(), 0),
    }


def measured(model: Any, loss: torch.Tensor) -> dict[str, float]:
    model.zero_grad()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {"loss": loss.item(), "grad_norm": float(norm)}


class Golden:
    """Trainers over fresh copies of the same models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = small_tokenizer()
        for name, seed in (("policy", 2), ("reference", 1)):
            save_model(folder / name, small_model(tokenizer.vocab_size, seed), tokenizer)
        reward = RewardModel(small_model(tokenizer.vocab_size, 2))
        reward.score.weight.data.copy_(golden_head(32))
        save_reward(folder / "reward", reward, tokenizer)
        self.pairs = encode_pairs(rows(), tokenizer, 96).pairs
        self.labels = encode_labels(rows(), tokenizer, 96).labels
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
        text = {"prompt": "a b", "chosen": " c", "rejected": " d"}
        self.text = Dataset.from_list([text] * 4)
        self.labelled = Dataset.from_list([{"prompt": "a b", "completion": " c", "label": at < 2} for at in range(4)])

    def model(self, name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder / name)

    def trainer(self, kind: Any, config: Any, data: Dataset, model: Any, **more: Any) -> Any:
        return kind(model=model, args=config, train_dataset=data, processing_class=self.tokenizer, **more)

    def dpo(self, **settings: Any) -> dict[str, float]:
        config = trl.DPOConfig(output_dir=str(self.folder / "out"), **SETTINGS, **settings)
        model = self.model("policy")
        trainer = self.trainer(trl.DPOTrainer, config, self.text, model, ref_model=self.model("reference"))
        examples = [pair.chosen for pair in self.pairs] + [pair.rejected for pair in self.pairs]
        return measured(model, trainer.compute_loss(model, padded(examples)))

    def cpo(self, kind: Any, config: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        model = self.model("policy")
        trainer = self.trainer(kind, config, self.text, model)
        batch: dict[str, torch.Tensor] = {}
        for side in ("chosen", "rejected"):
            made = padded([getattr(pair, side) for pair in self.pairs])
            batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = made["input_ids"], made["attention_mask"]
            batch[f"{side}_labels"] = made["input_ids"].masked_fill(made["completion_mask"] == 0, -100)
        return model, trainer, batch

    def cdpo(self) -> dict[str, float]:
        """trl smooths labels in its loss without a reference, which is given the gains over one here."""
        out = str(self.folder / "out")
        config = CPOConfig(
            output_dir=out, loss_type="sigmoid", cpo_alpha=0.0, beta=0.3, label_smoothing=0.2, **SETTINGS
        )
        model, trainer, batch = self.cpo(CPOTrainer, config)
        with torch.no_grad():
            reference = trainer.concatenated_forward(self.model("reference"), batch)
        policy = trainer.concatenated_forward(model, batch)
        return measured(model, trainer.cpo_loss(policy[0] - reference[0], policy[1] - reference[1])[0].mean())

    def simpo(self) -> dict[str, float]:
        out = str(self.folder / "out")
        config = CPOConfig(output_dir=out, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.7, **SETTINGS)
        model, trainer, batch = self.cpo(CPOTrainer, config)
        return measured(model, trainer.get_batch_loss_metrics(model, batch)[0])

    def orpo(self) -> dict[str, float]:
        """The odds-ratio term alone: trl's likelihood term is of the prompt too."""
        config = ORPOConfig(output_dir=str(self.folder / "out"), beta=0.3, **SETTINGS)
        model, trainer, batch = self.cpo(ORPOTrainer, config)
        chosen, rejected = trainer.concatenated_forward(model, batch)[:2]
        return measured(model, -trainer.odds_ratio_loss(chosen, rejected)[0].mean())

    def kto(self) -> dict[str, float]:
        out = str(self.folder / "out")
        config = trl.KTOConfig(output_dir=out, beta=0.4, desirable_weight=1.3, undesirable_weight=0.8, **SETTINGS)
        model = self.model("policy")
        trainer = self.trainer(trl.KTOTrainer, config, self.labelled, model, ref_model=self.model("reference"))
        batch = padded([label.answer for label in self.labels])
        batch |= padded([label.mismatched for label in self.labels], "KL_")
        batch["label"] = torch.tensor([label.desirable for label in self.labels])
        return measured(model, trainer.compute_loss(model, batch))

    def reward(self) -> dict[str, float]:
        config = trl.RewardConfig(output_dir=str(self.folder / "out"), **SETTINGS)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder / "reward", num_labels=1)
        trainer = self.trainer(trl.RewardTrainer, config, self.text, model)
        batch = padded([pair.chosen for pair in self.pairs] + [pair.rejected for pair in self.pairs])
        batch["margin"] = torch.tensor([pair.margin for pair in self.pairs])
        del batch["completion_mask"]
        return measured(model, trainer.compute_loss(model, batch))

    def sft(self) -> dict[str, float]:
        config = trl.SFTConfig(output_dir=str(self.folder / "out"), **SETTINGS)
        model = self.model("policy")
        text = Dataset.from_list([{"prompt": "a b", "completion": " c"}] * 4)
        trainer = self.trainer(trl.SFTTrainer, config, text, model)
        batch = padded([pair.chosen for pair in self.pairs])
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return measured(model, trainer.compute_loss(model, batch))


def ids(example: Example) -> dict[str, Any]:
    return {"tokens": example.tokens.tolist(), "learnt": example.learnt.astype(int).tolist()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden(Path(folder))
        found = {
            "trl": trl.__version__,
            "vocab_size": small_tokenizer().vocab_size,
            "pairs": [
                {"chosen": ids(pair.chosen), "rejected": ids(pair.rejected), "margin": pair.margin}
                for pair in golden.pairs
            ],
            "labels": [
                {"answer": ids(each.answer), "mismatched": ids(each.mismatched), "desirable": each.desirable}
                for each in golden.labels
            ],
            "sft": golden.sft(),
            "dpo": golden.dpo(beta=0.3),
            "cdpo": golden.cdpo(),
            "ipo": golden.dpo(beta=0.3, loss_type="ipo"),
            "simpo": golden.simpo(),
            "orpo": golden.orpo(),
            "kto": golden.kto(),
            "reward": golden.reward(),
        }
    Path(__file__).with_name("golden.json").write_text(json.dumps(found) + "\n")
