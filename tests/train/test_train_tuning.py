"""Adapters, frozen layers and noise in training: exact after kills and in parts, and nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import Killed, KilledAt, Listener, random_documents, tiny_model, write_tokens

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder
from liuyi.model.lora import LoraConfig
from liuyi.model.quantize import quantize
from liuyi.train.batches import Batch, ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.ema import Ema
from liuyi.train.interfaces import LoopConfig
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.neftune import Neftune, segment_lengths
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import Tuning, prepare

LORA = {
    "lora": Tuning("lora", LoraConfig(rank=3, alpha=6)),
    "dora": Tuning("lora", LoraConfig(rank=3, alpha=6, dora=True)),
    "pissa": Tuning("lora", LoraConfig(rank=3, alpha=3, pissa=True)),
    "qlora": Tuning("lora", LoraConfig(rank=3, alpha=6, nf4=True)),
}
FREEZE = Tuning("freeze", layers=1, modules=("norm",))


def run(
    folder: Path,
    tuning: Tuning,
    *,
    steps: int = 12,
    micro_rows: int = 2,
    noise: float = 5.0,
    listener: Listener | None = None,
    checkpoint_every_s: float = 0.0,
    ema: Callable[[Decoder], Ema] | None = None,
) -> tuple[Decoder, Optimiser]:
    """Train a tiny model in `folder`, or go on with it."""
    torch.set_num_threads(1)
    if not (folder / "tokens.json").exists():
        write_tokens(folder, random_documents(60))
    model = tiny_model()
    prepare(model, tuning, seed=3)
    batches = ShuffledBatches(TokenRows(TokenStream(folder), 32), batch_rows=8, seed=5, micro_rows=micro_rows)
    optimiser = Optimiser(model, OptimiserConfig("adamw", lr=0.01, b_lr_ratio=4.0, layer_decay=0.8))
    average = ema(model) if ema else None
    trainer: Trainer[Decoder, Batch] = Trainer(
        model,
        Neftune(model, noise, seed=2**63 - 1).seeded(batches) if noise else batches,
        CausalLM(),
        optimiser,
        make_schedule("linear", steps=steps),
        config=LoopConfig(steps, checkpoint_every_s=checkpoint_every_s),
        workdir=folder / "work",
        observer=listener or Listener(),
        monitor=average,
    )
    trainer.run()
    if average:
        average.apply(model)
    return model, optimiser


@pytest.mark.parametrize("name", [*LORA, "freeze"])
def test_killed_runs_end_in_the_same_bits(name: str, tmp_path: Path) -> None:
    """With noise on the embeddings, and with gradients accumulated."""
    tuning = LORA.get(name, FREEZE)
    whole, _ = run(tmp_path / "whole", tuning, checkpoint_every_s=1000)
    for moment in (1, 5, 3):
        with pytest.raises(Killed):
            run(tmp_path / "broken", tuning, listener=KilledAt(moment))
    broken, _ = run(tmp_path / "broken", tuning)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[key]), key


@pytest.mark.parametrize("name", [*LORA, "freeze"])
def test_what_is_frozen_keeps_its_bits_and_costs_nothing(name: str, tmp_path: Path) -> None:
    """No state in the optimiser, no gradient, no place in the run's checkpoints."""
    tuning = LORA.get(name, FREEZE)
    start = tiny_model()
    prepare(start, tuning, seed=3)
    before = {key: tensor.clone() for key, tensor in start.state_dict().items()}
    trained = {key for key, parameter in start.named_parameters() if parameter.requires_grad}
    model, optimiser = run(tmp_path, tuning, steps=5)
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == trained
    assert {key.rsplit(":", 1)[0] for key in optimiser.state()} == trained
    assert all(parameter.grad is None for key, parameter in model.named_parameters() if key not in trained)
    newest = sorted((tmp_path / "work" / "checkpoints").iterdir())[-1]
    tensors = load_file(newest / "tensors-0.safetensors")
    assert {key.removeprefix("model/") for key in tensors if key.startswith("model/")} == trained
    held = sum(tensor.numel() for key, tensor in tensors.items() if key.startswith("optimiser/") and tensor.ndim)
    assert held == 2 * sum(after[key].numel() for key in trained)


def test_an_adapter_takes_a_fraction_of_the_state(tmp_path: Path) -> None:
    full, adapter = (
        sum(tensor.numel() for tensor in run(tmp_path / name, tuning, steps=2)[1].state().values())
        for name, tuning in (("full", Tuning()), ("lora", Tuning("lora", LoraConfig(rank=1, targets=("q_proj",)))))
    )
    assert adapter < full / 50


def test_noise_does_not_depend_on_how_rows_are_parted(tmp_path: Path) -> None:
    """Eight micro-batches of one row, and one of eight; adapters learn alike too."""
    weights = [run(tmp_path / str(micro), LORA["lora"], micro_rows=micro)[0].state_dict() for micro in (1, 8)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=2e-5)


def caught(model: Decoder, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """What the layers get as embeddings."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for batch in batches:
        model(batch.tokens, positions=batch.positions, segments=batch.segments)
    handle.remove()
    return seen


def test_noise_has_the_papers_size_and_is_gone_in_evaluation(tmp_path: Path) -> None:
    """Uniform within ±alpha / √(tokens · hidden) of each document; the same for a batch, another for the next."""
    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(60))), 32)
    inner = ShuffledBatches(rows, batch_rows=8, seed=5)
    model = tiny_model()
    batches = Neftune(model, 6.0, seed=1).seeded(inner)
    model.train()
    (batch,) = inner(0)
    plain = model.model.embed_tokens(batch.tokens)
    lengths = torch.tensor([[int((row == segment).sum()) for segment in row] for row in batch.segments])
    assert torch.equal(segment_lengths(batch.segments), lengths.float())
    (first,), (again,), (other,) = (caught(model, batches(index)) for index in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    scaled = (first - plain) * (lengths[..., None] * 16) ** 0.5 / 6.0
    assert float(scaled.abs().max()) <= 1.0 + 1e-4
    assert abs(float(scaled.mean())) < 0.03
    assert float(scaled.square().mean()) == pytest.approx(1 / 3, abs=0.02)
    model.eval()
    (quiet,) = caught(model, batches(0))
    assert torch.equal(quiet, plain)


def rates(config: OptimiserConfig, tuning: Tuning) -> dict[str, float]:
    """Learning rate by parameter, from the first step of an optimiser that moves by exactly its rate."""
    model = tiny_model()
    prepare(model, tuning, seed=0)
    optimiser = Optimiser(model, config)
    before = {key: parameter.detach().clone() for key, parameter in optimiser.parameters.items()}
    for parameter in optimiser.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step(0.5)
    return {key: float((before[key] - parameter).mean()) for key, parameter in optimiser.parameters.items()}


def test_layers_learn_more_slowly_the_deeper_they_lie() -> None:
    found = rates(OptimiserConfig("adamw", lr=0.02, layer_decay=0.5), Tuning())
    expected: dict[str, Any] = {
        "model.layers.1.mlp.up_proj.weight": 0.01,
        "model.layers.0.mlp.up_proj.weight": 0.005,
        "model.layers.0.input_layernorm.weight": 0.005,
        "model.embed_tokens.weight": 0.0025,
        "model.norm.weight": 0.01,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)


def test_b_learns_faster_by_the_ratio() -> None:
    found = rates(OptimiserConfig("adamw", lr=0.002, b_lr_ratio=16.0), LORA["lora"])
    for key, rate in found.items():
        assert rate == pytest.approx(0.016 if key.endswith("lora_B") else 0.001, rel=1e-3)


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(ModelError, match="the model has 2 layers, not 3"):
        prepare(tiny_model(), Tuning("freeze", layers=3), seed=0)
    with pytest.raises(ModelError, match="no module 'lm_hed'") as raised:
        prepare(tiny_model(), Tuning("freeze", modules=("lm_hed",)), seed=0)
    assert "embed_tokens" in raised.value.hint
    model = tiny_model()
    prepare(model, FREEZE, seed=0)
    named = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert named == {key for key, _ in model.named_parameters() if ".layers.1." in key or key == "model.norm.weight"}


@pytest.mark.parametrize("tuning", [Tuning(), FREEZE, LORA["lora"]], ids=["full", "freeze", "lora"])
def test_quantised_weights_are_not_trained(tuning: Tuning) -> None:
    with pytest.raises(ModelError, match="weights are int4, which can be served and not trained"):
        prepare(quantize(tiny_model(), "int4"), tuning, seed=0)


def test_noise_is_of_the_policy_alone(tmp_path: Path) -> None:
    """A model that shares the embeddings, such as the one without the adapter, has none."""
    from liuyi.model.lora import without_lora

    model = tiny_model()
    prepare(model, LORA["lora"], seed=0)
    start = without_lora(model)
    Neftune(model, 5.0, seed=1)
    model.train()
    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(9))), 32)
    batch = rows.read(np.arange(2))
    plain = model.model.embed_tokens(batch.tokens)
    assert torch.equal(caught(start, [batch])[0], plain)
    assert not torch.equal(caught(model, [batch])[0], plain)


class Seen(Ema):
    """Remembers the weights that it was shown."""

    def __init__(self, model: Decoder, decay: float) -> None:
        super().__init__(model, decay)
        self.start = {name: tensor.clone() for name, tensor in self.average.items()}
        self.shown: list[dict[str, torch.Tensor]] = []

    def after_step(self, model: torch.nn.Module, step: int) -> str:
        self.shown.append({name: model.get_parameter(name).detach().clone() for name in self.average})
        return super().after_step(model, step)


def test_the_average_is_its_formula(tmp_path: Path) -> None:
    """Over what is trained alone, and the model has it at the end."""
    kept: list[Seen] = []

    def watch(model: Decoder) -> Seen:
        kept.append(Seen(model, 0.5))
        return kept[0]

    model, optimiser = run(tmp_path, LORA["lora"], steps=20, ema=watch)
    (seen,) = kept
    assert set(seen.average) == set(optimiser.parameters)
    expected = {name: tensor.double() for name, tensor in seen.start.items()}
    for step, shown in enumerate(seen.shown, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * shown[name].double() for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(model.get_parameter(name).double(), value, rtol=1e-5, atol=1e-7)


def test_killed_runs_end_in_the_same_average(tmp_path: Path) -> None:
    tuning = LORA["lora"]
    whole, _ = run(tmp_path / "whole", tuning, checkpoint_every_s=1000, ema=lambda model: Ema(model, 0.9))
    for moment in (4, 5):
        with pytest.raises(Killed):
            run(tmp_path / "broken", tuning, listener=KilledAt(moment), ema=lambda model: Ema(model, 0.9))
    broken, _ = run(tmp_path / "broken", tuning, ema=lambda model: Ema(model, 0.9))
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[key]), key
