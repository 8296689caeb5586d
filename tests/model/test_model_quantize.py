"""int8 weights: how far off, how small, and back through a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import MODELS, hf_model, our_model, relative

from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import QuantLinear, int8_error, is_quantized, quantize_int8

TOKENS = torch.arange(60).view(2, 30)


def _logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(TOKENS)).float()


@pytest.mark.parametrize("name", ["smollm2", "llama-biased", "mistral", "qwen2", "qwen3"])
def test_logits_are_near_and_survive_the_folder(name: str, tmp_path: Path) -> None:
    model = our_model(hf_model(name))
    exact = _logits(model)
    small = quantize_int8(model)
    assert is_quantized(small)
    assert not is_quantized(model)
    assert torch.equal(_logits(model), exact)
    assert 0 < relative(_logits(small), exact) < 0.05
    save_model(tmp_path, small)
    loaded = load_model(tmp_path)
    assert torch.equal(_logits(loaded), _logits(small))
    save_model(tmp_path / "again", loaded)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_every_weight_is_within_half_a_step_of_its_group() -> None:
    model = our_model(hf_model("smollm2"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
    small = quantize_int8(model)
    for name, module in small.named_modules():
        if isinstance(module, QuantLinear):
            exact = model.get_submodule(name).weight.detach()
            for groups, off in zip(exact.split(64, dim=1), (module.widened() - exact).split(64, dim=1), strict=True):
                step = groups.abs().amax(dim=1, keepdim=True) / 127
                assert (off.abs() <= step * 0.5001).all()
            assert module.weight.abs().amax() == 127


def test_the_error_is_that_of_rounding() -> None:
    """Rounding errs by step/√12, and the step of 64 normal values is their largest, by its distribution, over 127."""
    from scipy.stats import norm

    x = np.linspace(0, 8, 20001)
    largest = np.sqrt(np.sum(x[1:] ** 2 * np.diff((2 * norm.cdf(x) - 1) ** 64)))
    torch.manual_seed(0)
    weight = torch.randn(2000, 640)
    matrix = QuantLinear(2000, 640, bias=False)
    matrix.fill(weight)
    matrix.widen(torch.float32)
    error = float((matrix.widened() - weight).norm() / weight.norm())
    assert error == pytest.approx(largest / 127 / 12**0.5, rel=0.01)
    model = our_model(hf_model("llama2"))
    measured = int8_error(model, quantize_int8(model))
    assert 0.003 < measured["relative_rms_error"] <= measured["relative_rms_error_max"] < 0.01


def test_the_file_is_a_quarter(tmp_path: Path) -> None:
    model = our_model(hf_model("llama2"))
    save_model(tmp_path / "wide", model)
    save_model(tmp_path / "small", quantize_int8(model))
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "small")}
    assert size["small"] < 0.4 * size["wide"]
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "small/model.safetensors").items()}
    assert dtypes["lm_head.weight"] == dtypes["model.embed_tokens.weight"] == torch.int8
    assert dtypes["model.norm.weight"] == dtypes["lm_head.weight_scale"] == torch.float32


def test_it_has_nothing_to_train() -> None:
    small = quantize_int8(our_model(hf_model("llama-biased")))
    assert not [name for name, parameter in small.named_parameters() if parameter.requires_grad]


def test_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="quantised already"):
        quantize_int8(quantize_int8(our_model(hf_model("llama2"))))


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, quantize_int8(our_model(hf_model("llama2"))))
    (tmp_path / "quantization.json").write_text(json.dumps({"format": "int3"}))
    with pytest.raises(ModelError, match='"int3"} is not supported'):
        load_model(tmp_path)


def test_missing_scales_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(tmp_path, quantize_int8(our_model(hf_model("llama2"))))
    weights: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight_scale"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head\.weight_scale' is missing"):
        load_model(tmp_path)


def test_every_family_can_be_quantised() -> None:
    for name in MODELS:
        model = our_model(hf_model(name))
        assert relative(_logits(quantize_int8(model)), _logits(model)) < 0.05
