"""What training costs by its formula, held to a count of what is computed; and the figures beside the bar."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drill import digest, small_run
from torch.nn.functional import rms_norm
from torch.utils.flop_counter import FlopCounterMode
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.lora import LoraConfig
from liuyi.train import loop, meter
from liuyi.train.batches import Batch
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.flops import ModelFlops, keys_of_documents
from liuyi.train.loop import LOG_FILE
from liuyi.train.tuning import Tuning, prepare


def whole_rows(rows: int = 3, seq: int = 24) -> Batch:
    """Rows of one document each, every token a target."""
    tokens = torch.arange(rows * seq).view(rows, seq) % 60 + 1
    segments = torch.zeros_like(tokens)
    return Batch(tokens, tokens.roll(-1, 1), segments, torch.arange(seq).expand(rows, seq).contiguous())


def counted(model: Decoder, batch: Batch) -> int:
    """FLOPs that PyTorch's own counter sees in a step, attention written as products, the logits at once."""
    from liuyi.model import attention, decoder
    from liuyi.model.loss import linear_cross_entropy_reference

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object, window: object) -> torch.Tensor:
        every = torch.ones(1, q.shape[2], q.shape[2], dtype=torch.bool)
        return attention.attention_reference(q, k, v, every)

    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr(decoder, "attention", written_out)
        patch.setattr(decoder, "rms_norm", lambda x, weight, eps: rms_norm(x, weight.shape, weight, eps))
        hidden = model(batch.tokens, positions=batch.positions)
        linear_cross_entropy_reference(hidden.flatten(0, 1), model.head_weight, batch.targets.flatten()).backward()
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
    """Autograd leaves out a few gradients in the lowest layer with anything trained, where it ends in the middle."""
    model = Decoder(replace(tiny_model().config, tie_word_embeddings=False))
    init_weights(model, 1)
    prepare(model, tuning, seed=1)
    batch = whole_rows()
    flops = ModelFlops.of(model).batch(batch)
    lowest = tuning.method == "lora" or tuning.layers
    spared = 0 if not lowest else sum(2 * p.numel() for p in _projections_in(model)) * batch.tokens.numel()
    assert flops - spared <= counted(model, batch) <= flops


def _projections_in(model: Decoder) -> list[torch.Tensor]:
    """The matrices that read the residual stream in the lowest trained layer, with what is added to them."""
    layer = next(layer for layer in model.model.layers if any(p.requires_grad for p in layer.parameters()))
    names = ("q_proj", "k_proj", "v_proj")
    return [p for name, p in layer.named_parameters() if any(part in name for part in names) and p.ndim == 2]


def test_only_the_experts_that_a_token_has_count() -> None:
    config = replace(
        tiny_model().config, family="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    )
    model = Decoder(config)
    init_weights(model, 1)
    batch = whole_rows()
    assert ModelFlops.of(model).batch(batch) == counted(model, batch)


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
    assert list(last) == ["loss", "lr", "grad_norm", "tok_s", "learnt_tok_s", "fp32_mfu", "memory_bytes"]
    assert 0 < last["fp32_mfu"] < 1
    assert last["memory_bytes"] > 2**20
    assert last["tok_s"] >= last["learnt_tok_s"] > 0
    assert {"tok_s", "fp32_mfu"} <= {name for name, _, _ in watcher.metrics}
    assert result.figures.keys() == last.keys() - {"loss", "lr", "grad_norm"}
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
    model, result, _ = small_run(tmp_path, steps=60, listener=watcher, every_s=1e9)
    assert watcher.shown[-1]["tok_s"] == pytest.approx(4 * 32 / 0.5)
    flops = ModelFlops.of(model)
    assert result.figures["fp32_mfu"] == pytest.approx(result.figures["tok_s"] * flops.token / 1e12, rel=2)
    assert loop.time.monotonic is meter.time.monotonic
