"""Four-bit weights against numbers of `bitsandbytes`, against brute force, and in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny_models import hf_model, our_model, relative

from liuyi.model.decoder import Linear
from liuyi.model.lora import LoraConfig, add_lora, lora_layers, without_lora
from liuyi.model.nf4 import BLOCK, NF4, Nf4Linear, dynamic_map, quantize_nf4

SHAPES = [(64, 64), (23, 200), (7, 9)]


def linear(out_features: int, in_features: int) -> Linear:
    """Numbers of different sizes by row, the same on every machine."""
    rng = np.random.default_rng(out_features)
    layer = Linear(in_features, out_features, bias=True)
    with torch.no_grad():
        layer.weight.copy_(
            torch.from_numpy(rng.normal(size=(out_features, in_features)) * rng.random((out_features, 1)))
        )
        layer.bias.copy_(torch.from_numpy(rng.normal(size=out_features)))  # type: ignore[union-attr]
    return layer


def test_the_values_are_quantiles_of_a_normal_distribution() -> None:
    """The paper's construction: eight non-negative and seven negative ones between the quantiles of ±0.9677."""
    offset = 0.9677083
    upper = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    lower = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate((upper, lower, [0.0])))
    np.testing.assert_allclose(values / values.max(), NF4, atol=1e-6)


GOLDEN = json.loads((Path(__file__).parent / "nf4_golden.json").read_text())


@pytest.mark.parametrize("golden", GOLDEN["matrices"], ids=lambda golden: str(golden["shape"]))
def test_the_numbers_are_those_of_bitsandbytes(golden: dict[str, Any]) -> None:
    """All of them; of the magnitudes, but for those between two values, where ours is no farther than theirs."""
    layer = linear(*golden["shape"])
    small = Nf4Linear.of(layer)
    assert bytes(small.codes.tolist()).hex() == golden["codes"]
    assert small.outer.tolist() == golden["outer"]
    assert float(small.mean) == golden["mean"]
    theirs = torch.tensor(list(bytes.fromhex(golden["magnitudes"])))
    exact = (quantize_nf4(layer.weight.detach())[1] - small.mean) / small.outer.repeat_interleave(256)[: len(theirs)]
    off, their_off = ((dynamic_map()[numbers.long()] - exact).abs() for numbers in (small.magnitudes, theirs))
    assert bool((off <= their_off + 1e-6).all())
    assert int((theirs != small.magnitudes).sum()) <= 2


def test_every_number_is_the_nearest_value_of_its_block() -> None:
    weight = linear(5, 64).weight.detach()
    codes, magnitudes = quantize_nf4(weight)
    numbers = torch.stack((codes >> 4, codes & 15), dim=1).flatten()
    values = torch.tensor(NF4)
    for block, (row, magnitude) in enumerate(zip(weight.view(-1, BLOCK), magnitudes, strict=True)):
        assert magnitude == row.abs().max()
        for at, value in enumerate(row):
            best = (values - value / magnitude).abs().argmin()
            assert numbers[block * BLOCK + at] == best


def test_the_map_of_magnitudes_has_256_values_around_zero() -> None:
    values = dynamic_map()
    assert len(values.unique()) == 256
    assert (values.min(), values.max()) == (pytest.approx(-0.9929688), 1.0)
    assert 0.0 in values


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_multiplies_with_what_its_numbers_stand_for(shape: tuple[int, int]) -> None:
    """Forward and gradient; it keeps an eighth of float32's bytes and a little for scales."""
    layer = linear(*shape)
    small = Nf4Linear.of(layer)
    x = torch.randn(3, shape[1], requires_grad=True)
    y = small(x)
    expected = x @ small.widened().T + layer.bias
    torch.testing.assert_close(y, expected)
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(ours, theirs)
    size = layer.weight.numel()
    assert small.stored_bytes <= size / 2 + size / BLOCK + size / BLOCK / 256 * 4 + 12
    assert not list(small.parameters(recurse=False)) or small.bias is layer.bias


def test_an_adapter_is_trained_beside_four_bits() -> None:
    """Untargeted projections are in four bits too; the graph holds no widened matrix; the base's bits stay."""
    model = our_model(hf_model("qwen2"))
    add_lora(model, LoraConfig(rank=2, nf4=True, targets=("q_proj",)), seed=0)
    layers = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    before = [layer.codes.clone() for layer in layers]
    tokens = torch.arange(20)[None]
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.logits(model(tokens)).logsumexp(-1).sum()
    widest = max(layer.in_features * layer.out_features for layer in layers)
    assert widest not in kept
    loss.backward()
    assert all(layer.lora_B.grad is not None and layer.lora_B.grad.abs().sum() > 0 for _, layer in lora_layers(model))
    assert all(torch.equal(layer.codes, codes) for layer, codes in zip(layers, before, strict=True))
    with torch.no_grad():
        start = without_lora(model)
        plain = our_model(hf_model("qwen2"))
        error = relative(start.logits(start(tokens)), plain.logits(plain(tokens)))
    assert 0 < error < 0.5
