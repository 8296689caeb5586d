"""What training costs by its formula, held to a count of what is computed; and the figures beside the bar."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drill import digest, small_run
from torch.utils.flop_counter import FlopCounterMode
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.lora import LoraConfig
from liuyi.train import meter
from liuyi.train.batches import Batch
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.flops import ModelFlops, keys_of_documents
from liuyi.train.interfaces import LoopConfig
from liuyi.train.log import LOG_FILE
from liuyi.train.tuning import Tuning, prepare, train_only


def whole_rows(rows: int = 3, seq: int = 24) -> Batch:
    """Rows of one document each, every token a target."""
    tokens = torch.arange(rows * seq).view(rows, seq) % 60 + 1
    segments = torch.zeros_like(tokens)
    return Batch(tokens, tokens.roll(-1, 1), segments, torch.arange(seq).expand(rows, seq).contiguous())


def counted(model: Decoder, batch: Batch, tuning: Tuning = Tuning()) -> int:
    """FLOPs that PyTorch's own counter sees in a step of the same model in transformers, with peft's adapters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = model.config.to_hf()
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if tuning.lora:
        import peft

        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=tuning.lora.rank, target_modules=[*tuning.lora.targets]))
    elif tuning.method == "freeze":
        train_only(theirs, tuning.layers, tuning.modules)
    with FlopCounterMode(display=False) as counter:
        theirs(input_ids=batch.tokens, labels=batch.targets).loss.backward()
    return counter.get_total_flops()


def test_the_formula_is_what_is_computed() -> None:
    """Tied head, grouped queries, all weights trained: to the last operation."""
    model, batch = tiny_model(), whole_rows()
    assert ModelFlops.of(model).batch(batch) == counted(model, batch)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning("lora", LoraConfig(rank=2)),
        Tuning("freeze", layers=1),
        Tuning("freeze", modules=("lm_head",)),
    ],
    ids=["lora", "last layer", "head"],
)
def test_what_is_frozen_costs_less(tuning: Tuning) -> None:
    """To the last operation, but for one thing: what the adapters of the first layer read has no gradient to go on to,
    and the formula has one for it."""
    model = Decoder(replace(tiny_model().config, tie_word_embeddings=False))
    init_weights(model, 1)
    prepare(model, tuning, seed=1)
    batch = whole_rows()
    readers = ("q_proj", "k_proj", "v_proj")
    spared = sum(
        2 * parameter.numel()
        for name, parameter in model.model.layers[0].named_parameters()
        if tuning.lora and any(reader in name for reader in readers) and not name.endswith("lora_B")
    )
    flops = ModelFlops.of(model).batch(batch)
    assert flops - spared * batch.tokens.numel() == counted(model, batch, tuning)


def test_only_the_experts_that_a_token_has_count() -> None:
    """Two of four experts cost as much as an MLP of their size together, and the choice among them a small matrix."""
    dense = tiny_model().config
    sparse = replace(dense, family="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    choice = 6 * dense.hidden_size * 4 * dense.num_hidden_layers
    assert dense.intermediate_size == 2 * sparse.moe_intermediate_size
    assert ModelFlops.of(Decoder(sparse)).token == ModelFlops.of(Decoder(dense)).token + choice


def test_packed_documents_attend_within_themselves() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1]])
    assert keys_of_documents(positions, None) == 4**2 + 2**2 + 2**2
    assert keys_of_documents(positions, 2) == sum(2 * min(p + 1, 2) - 1 for p in positions.flatten().tolist())


def test_tokens_without_a_target_make_no_logits(tmp_path: Path) -> None:
    rows = TokenRows(TokenStream(write_tokens(tmp_path, random_documents(9))), 32)
    batch = rows.read(torch.arange(2).numpy())
    flops = ModelFlops.of(tiny_model())
    silent = replace(batch, targets=batch.targets.clone().index_fill_(1, torch.arange(16), -100))
    assert flops.batch(batch) - flops.batch(silent) == flops.target * 32


class Watcher(Listener):
    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, float]] = []

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        self.shown.append(shown)


def test_figures_beside_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, the limit from its cache after the first time, in the ledger and the result, and not in the log."""
    measured: list[str] = []

    def peak(dtype: str, device: str) -> float:
        measured.append(dtype)
        return 1e12

    monkeypatch.setattr(meter, "gemm_flops", peak)
    monkeypatch.setattr(meter, "PEAK_AFTER_S", 0.0)
    monkeypatch.setattr(meter, "RECORD_S", 0.0)
    watcher = Watcher()
    model, result, _ = small_run(tmp_path / "a", steps=6, listener=watcher)
    last = watcher.shown[-1]
    assert list(last) == ["loss", "lr", "grad_norm", "tok_s", "fp32_mfu", "memory_bytes"]
    assert 0 < last["fp32_mfu"] < 1
    assert last["memory_bytes"] > 2**20
    assert {"tok_s", "fp32_mfu"} <= {name for name, _, _ in watcher.metrics}
    assert result.figures.keys() == {"tok_s", "learnt_tok_s", "fp32_mfu", "memory_bytes"}
    assert result.figures["tok_s"] >= result.figures["learnt_tok_s"] > 0
    row = json.loads((tmp_path / "a/work" / LOG_FILE).read_text().splitlines()[0])
    assert list(row) == ["step", "batch", "loss", "lr", "grad_norm"]
    small_run(tmp_path / "a", steps=8)
    assert measured == ["fp32"]
    monkeypatch.setattr(meter, "PEAK_AFTER_S", 1e9)
    undisturbed, _, _ = small_run(tmp_path / "b", steps=6)
    assert digest(model) == digest(undisturbed)


def test_speed_is_tokens_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of 32 tokens a step, and a step every half second; measuring the limit takes none of it."""
    clock = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: clock[0])

    def peak(dtype: str, device: str) -> float:
        clock[0] += 100.0
        return 1e12

    monkeypatch.setattr(meter, "gemm_flops", peak)

    class Slow(Watcher):
        def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
            super().progress(done, total, unit, **shown)
            clock[0] += 0.5

    watcher = Slow()
    model, result, _ = small_run(tmp_path, steps=45, listener=watcher, every_s=1e9)
    assert watcher.shown[-1]["tok_s"] == pytest.approx(4 * 32 / 0.5)
    flops = ModelFlops.of(model)
    # Heads and attention come on top of what every token costs.
    least = result.figures["tok_s"] * flops.token / 1e12
    assert least < result.figures["fp32_mfu"] < 1.5 * least
    twice = Slow()
    config = LoopConfig(12, checkpoint_every_s=1e9, verify_every=2)
    small_run(tmp_path / "twice", steps=12, listener=twice, config=config)
    # Every other step was taken twice, and each is progress once; eleven half seconds lie between twelve steps.
    assert twice.shown[-1]["tok_s"] == pytest.approx(12 * 4 * 32 / 5.5)


def test_a_model_that_leaves_no_room_for_the_measurement_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def full(dtype: str, device: str) -> float:
        tried.append(dtype)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(meter, "gemm_flops", full)
    monkeypatch.setattr(meter, "PEAK_AFTER_S", 0.0)
    watcher = Watcher()
    small_run(tmp_path, steps=4, listener=watcher)
    assert tried == ["fp32"]
    assert "fp32_mfu" not in watcher.shown[-1]
    assert not (tmp_path / "work" / meter.PEAK_FILE).exists()
