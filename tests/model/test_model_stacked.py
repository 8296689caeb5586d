"""Adapters in one memory with their frozen matrices: the same products, gradients and weights as apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_models import hf_model, our_model
from torch import Tensor

from liuyi.kernels.training import training_kernels
from liuyi.model.decoder import MLP, Decoder, Linear
from liuyi.model.lora import LoraConfig, LoraLinear, add_lora, hold_frozen, lora_layers, stack_frozen, without_lora
from liuyi.model.low_rank import low_rank_products_reference

TOKENS = torch.arange(40).view(2, 20)


def tuned(config: LoraConfig, family: str = "qwen2") -> Decoder:
    """A tiny model with an adapter that has learnt something."""
    model = our_model(hf_model(family))
    add_lora(model, config, seed=1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(0, 0.05)
    return model


def group(model: Decoder, *names: str) -> list[LoraLinear]:
    """Layers of the second block."""
    return [model.get_submodule(f"model.layers.1.{name}") for name in names]  # type: ignore[misc]


def formula(layers: Sequence[LoraLinear], x: Tensor) -> tuple[Tensor, ...]:
    thin = [layer.lora_A for layer in layers], [layer.lora_B for layer in layers]
    return low_rank_products_reference(x, [layer.base for layer in layers], *thin, [layer.scale for layer in layers])


def results(function: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor]) -> list[Tensor]:
    """What it gives, and the gradients of something uneven made of it."""
    ys = function()
    weights = torch.Generator().manual_seed(0)
    loss = sum(((y * torch.randn(y.shape, generator=weights)).sin().sum() for y in ys), torch.tensor(0.0))
    return [*ys, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("o_proj",)])
@pytest.mark.parametrize("of_x", [True, False])
def test_stacked_layers_are_the_formula_with_the_formula_s_gradients(names: tuple[str, ...], of_x: bool) -> None:
    """Qwen2's query, key and value have biases."""
    model = tuned(LoraConfig(rank=4, alpha=6))
    layers = group(model, *(f"self_attn.{name}" for name in names))
    x = torch.randn(2, 7, layers[0].base.in_features, requires_grad=of_x)
    wanted = [*([x] if of_x else []), *(side for layer in layers for side in (layer.lora_A, layer.lora_B))]
    expected = results(lambda: formula(layers, x), wanted)
    stack_frozen(model)
    assert layers[0].stack is not None
    for ours, theirs in zip(results(lambda: LoraLinear.together(layers, x), wanted), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(training_kernels() is None, reason="no native kernels")
def test_the_mlp_as_one_function_is_as_near_to_float32_as_its_parts_are() -> None:
    torch.manual_seed(0)
    mlp = MLP(48, 96)
    for name in ("gate_proj", "up_proj", "down_proj"):
        linear = mlp.get_submodule(name)
        assert isinstance(linear, Linear)
        torch.nn.init.normal_(linear.weight, std=0.1)
        layer = LoraLinear(linear, LoraConfig(rank=4))
        torch.nn.init.normal_(layer.lora_A, std=0.1)
        torch.nn.init.normal_(layer.lora_B, std=0.1)
        mlp.set_submodule(name, layer)
    model = torch.nn.Sequential(mlp)
    x = torch.randn(2, 32, 48, requires_grad=True)
    wanted = [x, *(parameter for parameter in mlp.parameters() if parameter.requires_grad)]
    exact = results(lambda: [mlp(x)], wanted)

    def rounded() -> Sequence[Tensor]:
        return [mlp(x.bfloat16()).float()]

    for layer in mlp.children():
        layer.base.weight.data = layer.base.weight.data.bfloat16()
    apart = results(rounded, wanted)
    stack_frozen(model)  # type: ignore[arg-type]
    assert LoraLinear.mlp(x.bfloat16(), *mlp.children()) is not None  # type: ignore[arg-type]
    for good, ours, theirs in zip(exact, results(rounded, wanted), apart, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - good).norm() < 1.5 * (theirs - good).norm() + 1e-3 * good.norm()


def test_a_step_of_the_optimiser_is_seen() -> None:
    model = tuned(LoraConfig(rank=4))
    layers = group(model, "mlp.gate_proj", "mlp.up_proj")
    x = torch.randn(3, layers[0].base.in_features)
    stack_frozen(model)
    before = LoraLinear.together(layers, x)
    with torch.no_grad():
        layers[1].lora_B.mul_(3)
        layers[0].lora_A.add_(0.1)
    after = LoraLinear.together(layers, x)
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    for ours, theirs in zip(after, formula(layers, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_the_frozen_model_keeps_its_weights_and_outputs(family: str) -> None:
    model = tuned(LoraConfig(rank=4), family)
    start = without_lora(model)
    weights = {name: weight.clone() for name, weight in start.state_dict().items()}
    logits, adapted = start.logits(start(TOKENS)), model.logits(model(TOKENS))
    stack_frozen(model)
    for name, weight in start.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    torch.testing.assert_close(start.logits(start(TOKENS)), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits(model(TOKENS)), adapted, rtol=1e-4, atol=1e-5)


def test_weights_that_were_given_other_memory_are_read_there() -> None:
    model = tuned(LoraConfig(rank=4))
    layers = group(model, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    stack_frozen(model)
    layers[1].base.weight.data = layers[1].base.weight.data * 2
    x = torch.randn(3, layers[0].base.in_features)
    for ours, theirs in zip(LoraLinear.together(layers, x), formula(layers, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layers_of_a_group_without_an_adapter_leave_the_others_alone() -> None:
    model = tuned(LoraConfig(rank=4, targets=("q_proj", "up_proj", "down_proj")))
    expected = model(TOKENS)
    stack_frozen(model)
    query, up, down = group(model, "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    assert query.stack is not None
    assert up.stack is not None
    assert down.stack is None  # what it reads is wider than what it makes
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [LoraConfig(rank=4, dora=True), LoraConfig(rank=4, nf4=True)])
def test_dora_and_four_bits_stay_as_they_are(config: LoraConfig) -> None:
    model = tuned(config)
    hold_frozen(model, torch.bfloat16)
    stack_frozen(model)
    assert all(layer.stack is None for _, layer in lora_layers(model))
