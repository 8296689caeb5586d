"""Frozen matrices with thin products beside them: the function against its formula, and matrices kept in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import hf_model, our_model
from torch import Tensor
from torch.nn import functional

from liuyi.model.adapter import Adapter
from liuyi.model.decoder import Decoder, Linear
from liuyi.model.lora import LoraConfig, add_lora, hold_frozen, lora_adapter, lora_layers, without_lora
from liuyi.model.low_rank import low_rank_products, low_rank_products_reference
from liuyi.model.merge import merge_adapter
from liuyi.model.nf4 import Nf4Linear

TOKENS = torch.arange(40).view(2, 20)


def layers(bias: bool, nf4: bool) -> list[tuple[Linear | Nf4Linear, Tensor, Tensor, float]]:
    """Three layers that read 32 values, of different width, rank and scale."""
    torch.manual_seed(0)
    made: list[tuple[Linear | Nf4Linear, Tensor, Tensor, float]] = []
    for width, rank, scale in ((24, 4, 2.0), (8, 4, 0.5), (40, 3, 1.0)):
        linear = Linear(32, width, bias=bias).requires_grad_(False)
        linear.weight.normal_()
        if linear.bias is not None:
            linear.bias.normal_()
        base = Nf4Linear.of(linear) if nf4 else linear
        made.append((base, torch.randn(rank, 32).requires_grad_(), torch.randn(width, rank).requires_grad_(), scale))
    return made


@pytest.mark.parametrize(("bias", "nf4"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_formula_with_the_formula_s_gradients(count: int, bias: bool, nf4: bool) -> None:
    bases, downs, ups, scales = zip(*layers(bias, nf4)[:count], strict=True)
    x = torch.randn(2, 7, 32).requires_grad_()
    weights = [torch.randn(2, 7, up.shape[0]) for up in ups]
    found = []
    for function in (low_rank_products, low_rank_products_reference):
        ys = function(x, bases, downs, ups, scales)
        loss = torch.stack([(y.sin() * w).sum() for y, w in zip(ys, weights, strict=True)]).sum()
        found.append([*ys, *torch.autograd.grad(loss, [x, *downs, *ups])])
    for ours, formula in zip(*found, strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)


def test_no_rows_give_no_results_and_gradients_of_zero() -> None:
    """As for an expert without tokens."""
    bases, downs, ups, scales = zip(*layers(False, False), strict=True)
    x = torch.zeros(0, 32, requires_grad=True)
    ys = low_rank_products(x, bases, downs, ups, scales)
    assert [y.shape for y in ys] == [(0, 24), (0, 8), (0, 40)]
    grads = torch.autograd.grad(sum(y.sum() for y in ys), [x, *downs, *ups])
    assert not any(grad.any() for grad in grads)


def test_hooks_are_called_on_adapters_and_on_what_is_beside_them() -> None:
    model = tuned(LoraConfig(rank=4))
    seen: list[str] = []
    for name in ("q_proj", "v_proj.base"):
        layer = model.get_submodule(f"model.layers.0.self_attn.{name}")
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    expected = tuned(LoraConfig(rank=4))(TOKENS)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert seen == ["q_proj", "v_proj.base"]


def test_in_bfloat16_trained_matrices_get_float32_gradients_as_near_as_the_formula_s() -> None:
    bases, downs, ups, scales = zip(*layers(False, False), strict=True)
    x = torch.randn(2, 64, 32)

    def gradients(function: object, dtype: torch.dtype) -> list[Tensor]:
        ys = function(x.to(dtype), bases, downs, ups, scales)  # type: ignore[operator]
        return list(torch.autograd.grad(sum(y.float().square().sum() for y in ys), [*downs, *ups]))

    exact = gradients(low_rank_products_reference, torch.float32)
    ours, formula = (gradients(each, torch.bfloat16) for each in (low_rank_products, low_rank_products_reference))
    for good, mine, other in zip(exact, ours, formula, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - good).norm() < 1.5 * (other - good).norm() + 1e-3 * good.norm()


def tuned(config: LoraConfig) -> Decoder:
    model = our_model(hf_model("qwen2"))
    add_lora(model, config, seed=1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(0, 0.05)
    return model


def loss(model: Decoder) -> Tensor:
    hidden = model(TOKENS, compute_dtype=torch.bfloat16)
    return functional.cross_entropy(model.logits(hidden)[:, :-1].flatten(0, 1).float(), TOKENS[:, 1:].flatten())


@pytest.mark.parametrize("config", [LoraConfig(rank=4), LoraConfig(rank=4, targets=("q_proj", "up_proj"))])
def test_matrices_kept_in_the_compute_dtype_give_the_same_bits(config: LoraConfig) -> None:
    plain, held = tuned(config), tuned(config)
    hold_frozen(held, torch.bfloat16)
    for _, layer in lora_layers(held):
        assert layer.base.weight.dtype == torch.bfloat16
    losses = [loss(plain), loss(held)]
    assert torch.equal(*losses)
    for each in losses:
        each.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, held.get_parameter(name).grad), name
    starts = [without_lora(each) for each in (plain, held)]
    assert torch.equal(*(each(TOKENS, compute_dtype=torch.bfloat16) for each in starts))


def test_what_is_published_knows_nothing_of_the_dtype_that_was_trained_in(tmp_path: Path) -> None:
    config = LoraConfig(rank=4)
    plain, held = tuned(config), tuned(config)
    hold_frozen(held, torch.bfloat16)
    lora_adapter(held, config).save(tmp_path)
    adapter = Adapter.load(tmp_path)
    assert adapter.digest == lora_adapter(plain, config).digest
    merged, _ = merge_adapter(our_model(hf_model("qwen2")), adapter)
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())


def test_dora_keeps_the_matrices_whose_lengths_it_takes() -> None:
    model = tuned(LoraConfig(rank=4, dora=True))
    lengths = [layer.row_lengths() for _, layer in lora_layers(model)]
    hold_frozen(model, torch.bfloat16)
    assert all(torch.equal(a, layer.row_lengths()) for a, (_, layer) in zip(lengths, lora_layers(model), strict=True))
