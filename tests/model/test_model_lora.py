"""Adapters in training against PEFT, against gradient descent on a full matrix, and against their formulas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import hf_model, our_model, relative
from torch import nn

from liuyi.core.errors import ModelError
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank, projection_shapes
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, Linear, init_weights
from liuyi.model.lora import LoraConfig, LoraLinear, add_lora, lora_adapter, lora_layers, without_lora
from liuyi.model.merge import merge_adapter
from liuyi.model.quantize import quantize

peft = pytest.importorskip("peft")
TOKENS = torch.arange(40).view(2, 20)

CONFIGS: dict[str, LoraConfig] = {
    "lora": LoraConfig(rank=4, alpha=8),
    "rslora": LoraConfig(rank=4, alpha=6, rslora=True, targets=("q_proj", "v_proj")),
    "dora": LoraConfig(rank=3, alpha=5, dora=True),
    "pissa": LoraConfig(rank=5, alpha=5, pissa=True),
    "pissa rslora": LoraConfig(rank=4, alpha=4, pissa=True, rslora=True, targets=("o_proj", "up_proj")),
    "dora pissa": LoraConfig(rank=4, alpha=4, pissa=True, dora=True),
}


def logits(model: Decoder) -> torch.Tensor:
    return model.logits(model(TOKENS))


def trained(config: LoraConfig, family: str = "qwen2", steps: int = 4) -> Decoder:
    """A model whose adapter has taken a few steps."""
    model = our_model(hf_model(family))
    add_lora(model, config, seed=1)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


@pytest.mark.parametrize("name", list(CONFIGS))
def test_training_begins_at_the_model(name: str) -> None:
    model, plain = our_model(hf_model("qwen2")), our_model(hf_model("qwen2"))
    add_lora(model, CONFIGS[name], seed=1)
    with torch.no_grad():
        assert relative(logits(model), logits(plain)) < 1e-5


@pytest.mark.parametrize("name", list(CONFIGS))
def test_peft_has_the_outputs_of_what_was_trained_here(name: str, tmp_path: Path) -> None:
    """On the base as it was, whatever the frozen weights became: PEFT unmerged, our own merge, and a second reading."""
    model = trained(CONFIGS[name])
    adapter = lora_adapter(model, CONFIGS[name])
    adapter.save(tmp_path)
    assert Adapter.load(tmp_path).digest == adapter.digest
    theirs = peft.PeftModel.from_pretrained(hf_model("qwen2"), tmp_path).eval()
    merged, error = merge_adapter(our_model(hf_model("qwen2")), adapter)
    with torch.no_grad():
        ours = logits(model)
        assert relative(ours, logits(our_model(hf_model("qwen2")))) > 0.01
        assert relative(theirs(TOKENS).logits, ours) < 1e-4
        assert relative(logits(merged), ours) < 1e-4
    assert error.relative_rms_error < 1e-6


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lora", {}), ("rslora", {"use_rslora": True}), ("dora", {"use_dora": True}), ("pissa", {})],
)
def test_gradients_are_those_of_peft(name: str, settings: dict[str, Any]) -> None:
    """From the same A and B, every trained tensor's gradient."""
    config = CONFIGS[name]
    model = trained(config, steps=2)
    base = hf_model("qwen2")
    if config.pissa:
        for module, layer in lora_layers(model):
            base.get_submodule(module).weight.data.copy_(layer.base.weight)  # type: ignore[union-attr]
    target = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), task_type="CAUSAL_LM", **settings
    )
    theirs = peft.get_peft_model(base, target)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for module, layer in lora_layers(model):
            other = theirs.get_submodule(f"base_model.model.{module}")
            mine = [layer.lora_A, layer.lora_B]
            found = [other.lora_A["default"].weight, other.lora_B["default"].weight]
            if layer.magnitude is not None:
                mine.append(layer.magnitude)
                found.append(other.lora_magnitude_vector["default"].weight)
            for one, two in zip(mine, found, strict=True):
                two.copy_(one)
                pairs.append((one, two))
    for outputs in (logits(model), theirs(TOKENS).logits):
        nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    for one, two in pairs:
        torch.testing.assert_close(one.grad, two.grad, rtol=2e-3, atol=1e-6)


def test_only_the_adapter_is_trained() -> None:
    config = CONFIGS["dora"]
    model, plain = trained(config), our_model(hf_model("qwen2"))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 3 * 7 * model.config.num_hidden_layers
    assert all(name.endswith(("lora_A", "lora_B", "magnitude")) for name in names)
    for name, parameter in plain.named_parameters():
        kept = model.get_parameter(name if "proj" not in name else name.replace("proj.", "proj.base."))
        assert torch.equal(kept, parameter), name
    start = without_lora(model)
    with torch.no_grad():
        assert torch.equal(logits(start), logits(plain))
    assert start.model.embed_tokens is model.model.embed_tokens


def test_the_start_of_pissa_is_not_there_any_more() -> None:
    with pytest.raises(ModelError, match="PiSSA"):
        without_lora(trained(CONFIGS["pissa"], steps=0))


def test_full_rank_with_a_orthonormal_takes_the_steps_of_the_full_matrix() -> None:
    """On a linear problem: with A = I frozen, r = in_features and scale 1, a gradient step of B is one of W."""
    torch.manual_seed(0)
    x, wanted = torch.randn(50, 6), torch.randn(50, 4)
    base, full = Linear(6, 4), Linear(6, 4)
    with torch.no_grad():
        full.weight.copy_(base.weight.normal_())
    base.requires_grad_(False)
    layer = LoraLinear(base, LoraConfig(rank=6, alpha=6))
    layer.lora_A.requires_grad_(False).copy_(torch.eye(6))
    for _ in range(200):
        for module, parameter in ((layer, layer.lora_B), (full, full.weight)):
            (grad,) = torch.autograd.grad((module(x) - wanted).square().mean(), parameter)
            with torch.no_grad():
                parameter.sub_(0.5 * grad)
    merged = base.weight + layer.lora_B @ layer.lora_A
    torch.testing.assert_close(merged, full.weight)
    solution = torch.linalg.lstsq(x, wanted).solution.T
    torch.testing.assert_close(merged, solution, rtol=1e-3, atol=1e-3)


def test_pissa_holds_the_largest_singular_values() -> None:
    """What is left of a matrix has its other singular values (Eckart and Young)."""
    model = our_model(hf_model("smollm2"))
    before = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in projection_shapes(model.config)}
    add_lora(model, LoraConfig(rank=6, alpha=3, pissa=True), seed=0)
    for name, layer in lora_layers(model):
        values = torch.linalg.svdvals(before[name])
        left = torch.linalg.svdvals(layer.base.weight)  # type: ignore[arg-type]
        torch.testing.assert_close(left[: len(values) - 6], values[6:], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.linalg.svdvals(layer.lora_B @ layer.lora_A * layer.scale)[:6], values[:6])


def test_what_cannot_be_adapted_is_named() -> None:
    model = our_model(hf_model("smollm2"))
    with pytest.raises(ModelError, match="'lm_head' is no projection"):
        add_lora(model, LoraConfig(targets=("lm_head",)), seed=0)
    with pytest.raises(ModelError, match="rank 17 is more than"):
        add_lora(model, LoraConfig(rank=17, targets=("k_proj",)), seed=0)
    with pytest.raises(ModelError, match="beside full weights"):
        add_lora(quantize(model), LoraConfig(rank=2), seed=0)


def _adapter(model: Decoder, size: float) -> Adapter:
    torch.manual_seed(1)
    shapes = projection_shapes(model.config)
    return Adapter(
        {name: LowRank(torch.randn(2, into) * size, torch.randn(out, 2), 1.0) for name, (out, into) in shapes.items()}
    )


@pytest.mark.parametrize(("form", "bound"), [(torch.bfloat16, 0.003), ("int8", 0.02), ("int4", 0.15)])
def test_the_error_of_a_merge_is_that_of_the_format(form: Any, bound: float) -> None:
    """Against a product in float64 written out here."""
    model = our_model(hf_model("llama2"))
    adapter = _adapter(model, 0.1)
    merged, error = merge_adapter(model, adapter, form)
    for name, change in adapter.modules.items():
        exact = model.get_parameter(f"{name}.weight").double() + change.up.double() @ change.down.double()
        off = merged.get_submodule(name).widened().double() - exact  # type: ignore[operator]
        assert error.matrices[name] == pytest.approx(float(off.norm() / exact.norm()), rel=1e-3)
        assert 0 < error.matrices[name] < bound
    figures = error.metrics()
    assert figures["matrix_error_mean"] <= figures["matrix_error_max"] == max(error.matrices.values())


def test_an_adapter_goes_into_quantised_weights() -> None:
    """They are widened, changed and rounded again: most of the change arrives."""
    model = our_model(hf_model("llama2"))
    small = quantize(model, "int8")
    merged, error = merge_adapter(small, _adapter(model, 0.05))
    exact, _ = merge_adapter(model, _adapter(model, 0.05))
    with torch.no_grad():
        left, lost = relative(logits(merged), logits(exact)), relative(logits(small), logits(exact))
    assert left < 0.1 * lost
    assert error.change_error < 0.1


def test_every_projection_is_a_target_unless_said_otherwise() -> None:
    model = our_model(hf_model("qwen3"))
    add_lora(model, LoraConfig(rank=2), seed=0)
    assert {name.rpartition(".")[2] for name, _ in lora_layers(model)} == set(PROJECTIONS)


def test_experts_are_adapted_like_any_projection() -> None:
    """Of a mixture: what was trained is what merging gives, and the model without it is the one it began as."""
    config = DecoderConfig(
        family="mixtral",
        vocab_size=131,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
    )
    model, plain = Decoder(config), Decoder(config)
    for each in (model, plain):
        init_weights(each, seed=2, std=0.1)
    lora = LoraConfig(rank=2, alpha=4, dora=True)
    add_lora(model, lora, seed=1)
    assert len(list(lora_layers(model))) == 2 * (4 + 3 * 4)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(3):
        nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
    merged, _ = merge_adapter(plain, lora_adapter(model, lora))
    with torch.no_grad():
        assert relative(logits(merged), logits(model)) < 1e-4
        assert torch.equal(logits(without_lora(model)), logits(plain))
        assert relative(logits(plain), logits(model)) > 0.01


def test_a_row_of_zeros_has_no_length_to_divide_by() -> None:
    """DoRA leaves such a row alone, in training and merged."""
    plain = our_model(hf_model("qwen3"))
    with torch.no_grad():
        plain.model.layers[0].mlp.down_proj.weight[3] = 0.0
    model, config = copy.deepcopy(plain), LoraConfig(rank=2, dora=True)
    add_lora(model, config, seed=0)
    logits(model).square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    merged, _ = merge_adapter(plain, lora_adapter(model, config))
    assert not merged.model.layers[0].mlp.down_proj.weight[3].any()
    assert all(bool(p.isfinite().all()) for p in merged.parameters())
