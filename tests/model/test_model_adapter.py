"""LoRA adapters: PEFT reads what we save and the other way round, with the same outputs; damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import hf_model, our_model, relative

from liuyi.core.errors import ModelError
from liuyi.infer.adapters import AdapterRegistry
from liuyi.infer.torch_runner import TorchRunner
from liuyi.model.adapter import PROJECTIONS, Adapter, LowRank, projection_shapes
from liuyi.model.decoder import Decoder
from liuyi.model.merge import merge_adapter

peft = pytest.importorskip("peft")
TOKENS = torch.arange(40).view(2, 20)

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 3, "lora_alpha": 5, "target_modules": list(PROJECTIONS)},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": ["o_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"k_proj": 5, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {r"layers\.[02]\..*up_proj": 7},
    },
    "some layers": {"r": 2, "target_modules": ["gate_proj"], "layers_to_transform": [1]},
    "dora": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
}


def _peft_model(model: Any, seed: int = 3, **settings: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return wrapped


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("family", ["smollm2", "qwen2"])
def test_what_peft_saves_gives_the_same_outputs_here(name: str, family: str, tmp_path: Path) -> None:
    theirs = _peft_model(hf_model(family), **SETTINGS[name])
    theirs.save_pretrained(tmp_path)
    model = our_model(hf_model(family))
    adapter = Adapter.load(tmp_path)
    merged, error = merge_adapter(model, adapter)
    with torch.inference_mode():
        expected = theirs(TOKENS).logits
        plain = model.logits(model(TOKENS))
        assert relative(merged.logits(merged(TOKENS)), expected) < 1e-5
    assert relative(plain, expected) > 0.01
    assert error.relative_rms_error < 1e-7
    assert error.change_error < 1e-5


@pytest.mark.parametrize("name", list(SETTINGS))
def test_peft_loads_what_is_saved_here_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    theirs = _peft_model(hf_model("smollm2"), **SETTINGS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = Adapter.load(tmp_path / "theirs")
    adapter.save(tmp_path / "ours")
    again = Adapter.load(tmp_path / "ours")
    assert again.digest == adapter.digest
    back = peft.PeftModel.from_pretrained(hf_model("smollm2"), tmp_path / "ours").eval()
    with torch.inference_mode():
        assert torch.equal(back(TOKENS).logits, theirs(TOKENS).logits)


def test_the_same_adapter_gives_the_same_bytes_and_another_another_digest(tmp_path: Path) -> None:
    _peft_model(hf_model("smollm2"), **SETTINGS["patterns"]).save_pretrained(tmp_path / "peft")
    adapter = Adapter.load(tmp_path / "peft")
    for name in ("a", "b"):
        adapter.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    name, change = next(iter(adapter.modules.items()))
    other = Adapter({**adapter.modules, name: LowRank(change.down, change.up, change.scale * 2)})
    assert other.digest != adapter.digest


def test_rounding_the_merged_weights_is_reported() -> None:
    model = our_model(hf_model("smollm2")).bfloat16()
    name, (out, into) = next(iter(projection_shapes(model.config).items()))
    lost = Adapter({name: LowRank(torch.full((1, into), 1e-5), torch.full((out, 1), 1e-5), 1.0)})
    merged, error = merge_adapter(model, lost)
    assert torch.equal(merged.get_submodule(name).weight, model.get_submodule(name).weight)
    assert error.change_error == pytest.approx(1.0)
    kept = Adapter({name: LowRank(torch.randn(2, into), torch.randn(out, 2), 1.0)})
    assert 1e-4 < merge_adapter(model, kept)[1].relative_rms_error < 0.01


def test_an_adapter_of_another_model_is_named() -> None:
    model = our_model(hf_model("smollm2"))
    name, (out, into) = next(iter(projection_shapes(model.config).items()))
    change = LowRank(torch.zeros(2, into), torch.zeros(out, 2), 1.0)
    with pytest.raises(ModelError, match=r"'model\.layers\.7\.self_attn\.q_proj', which the model has not"):
        Adapter({"model.layers.7.self_attn.q_proj": change}).check(model.config)
    wide = LowRank(torch.zeros(2, into + 1), torch.zeros(out, 2), 1.0)
    with pytest.raises(ModelError, match="the model's is"):
        merge_adapter(model, Adapter({name: wide}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _peft_model(hf_model("smollm2"), **SETTINGS["plain"]).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "IA3"}, "'IA3' is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' has changed"),
        ({"r": 5}, "not those of rank 5"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"rank_pattern": {"(": 3}}, r"the pattern '\('"),
        ({"rank_pattern": 4}, "not an object"),
        ({"rank_pattern": {"(([a-z]+)+_?)+x": 4}}, "may take forever"),
    ],
)
def test_what_an_adapter_cannot_be_is_named(settings: dict[str, Any], message: str, saved: Path) -> None:
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelError, match=message):
        Adapter.load(saved)


def test_damaged_tensors_are_named(saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    whole = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, path)
        with pytest.raises(ModelError, match=message) as raised:
            Adapter.load(saved)
        assert "adapter_model.safetensors" in raised.value.where

    refused({key: tensor for key, tensor in whole.items() if key != name}, "has no lora_A")
    refused({**whole, name: whole[name][:2].contiguous()}, "not those of rank 4")
    refused({**whole, name: whole[name][0].contiguous()}, "not a matrix of real numbers")
    refused({**whole, "base_model.model.lm_head.lora_A.weight": whole[name].clone()}, r"lm_head.* is not supported")
    refused({**whole, name.replace("lora_A.weight", "lora_magnitude_vector"): whole[name].clone()}, "is not supported")
    refused({}, "holds no tensors")
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ModelError, match="cannot be read"):
        Adapter.load(saved)
    path.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        Adapter.load(saved)


def test_a_module_s_product_is_up_times_down() -> None:
    down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [5.0]])
    assert LowRank(down, up, 0.5).product().tolist() == [[1.5, 3.0], [2.5, 5.0]]


def test_the_projections_of_every_layer_can_be_changed() -> None:
    model: Decoder = our_model(hf_model("qwen3"))
    shapes = projection_shapes(model.config)
    assert len(shapes) == 7 * model.config.num_hidden_layers
    assert all(tuple(model.get_submodule(name).weight.shape) == shape for name, shape in shapes.items())


def test_dora_cannot_be_applied_beside_the_weights(tmp_path: Path) -> None:
    """It is no sum; a registry says so, and says what would be right."""
    _peft_model(hf_model("smollm2"), **SETTINGS["dora"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no sum with the weights") as raised:
        AdapterRegistry(TorchRunner(our_model(hf_model("smollm2")), 4)).load("dora", Adapter.load(tmp_path))
    assert "finetune.merge" in raised.value.hint
