"""Quantised weights: how far off, how small, and back through a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import MODELS, hf_model, our_model, relative

from int8_rotation import group_of, rotated
from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import Format, QuantLinear, QuantMatrix, quantization_of, quantize, weight_error

TOKENS = torch.arange(60).view(2, 30)


def _logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(TOKENS)).float()


ERRORS: list[tuple[Format, float]] = [("int8", 0.08), ("int4", 0.4)]


@pytest.mark.parametrize(("fmt", "error"), ERRORS)
@pytest.mark.parametrize("name", ["smollm2", "llama-biased", "mistral", "qwen2", "qwen3"])
def test_logits_are_near_and_survive_the_folder(name: str, fmt: Format, error: float, tmp_path: Path) -> None:
    model = our_model(hf_model(name))
    exact = _logits(model)
    small = quantize(model, fmt)
    assert quantization_of(small) == fmt
    assert quantization_of(model) is None
    assert torch.equal(_logits(model), exact)
    assert 0 < relative(_logits(small), exact) < error
    save_model(tmp_path, small)
    loaded = load_model(tmp_path)
    assert quantization_of(loaded) == fmt
    assert torch.equal(_logits(loaded), _logits(small))
    save_model(tmp_path / "again", loaded)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 128, 190, 192, 200, 320, 700, 704])
def test_every_int8_weight_is_within_half_a_step_of_its_group(columns: int) -> None:
    torch.manual_seed(columns)
    exact = torch.randn(9, columns)
    exact[3] = 0
    matrix = _filled(exact, "int8")
    assert torch.equal(matrix.widened()[3], torch.zeros(columns))
    group = group_of(columns)
    numbers = matrix.weight.view(9, -1, group) * matrix.weight_scale.float()[:, :, None]
    for exactly, near in zip(_groups(exact).unbind(1), numbers.unbind(1), strict=True):
        # A scale rounded up to bfloat16 is up to 1/128 larger.
        step = exactly.abs().amax(dim=1, keepdim=True) / 127 * (1 + 2**-7)
        assert ((near - exactly).abs() <= step * 0.5001 + 1e-6).all()
    assert torch.allclose(_groups(matrix.widened()) if columns % 64 == 0 else numbers, numbers, atol=1e-5)
    assert matrix.weight.abs().amax() in (126, 127)


def _groups(weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rotated(weight.numpy())).float().unflatten(1, (-1, group_of(weight.shape[1])))


def test_an_outlier_costs_the_others_less_than_its_size() -> None:
    torch.manual_seed(0)
    weight = torch.randn(200, 640)
    weight[:, ::64] *= 20
    error = float((_filled(weight, "int8").widened() - weight).norm())
    plain = weight.view(200, -1, 64)
    step = plain.abs().amax(dim=2, keepdim=True) / 127
    assert error < 0.5 * float(((plain / step).round() * step - plain).norm())


def test_the_int8_error_is_that_of_rounding() -> None:
    """Rounding errs by step/√12, and the step of 128 normal values is their largest, by its distribution, over 127;
    rounding the scale up to bfloat16 adds between 0 and 1/128 to it, 1/256 on the mean of mantissas."""
    from scipy.stats import norm

    x = np.linspace(0, 8, 20001)
    largest = np.sqrt(np.sum(x[1:] ** 2 * np.diff((2 * norm.cdf(x) - 1) ** 128)))
    torch.manual_seed(0)
    weight = torch.randn(2000, 640)
    matrix = _filled(weight, "int8")
    error = float((matrix.widened() - weight).norm() / weight.norm())
    assert error == pytest.approx(largest / 127 / 12**0.5 * (1 + 0.7 / 256), rel=0.01)
    model = our_model(hf_model("llama2"))
    measured = weight_error(model, quantize(model))
    assert 0.003 < measured["relative_rms_error"] <= measured["relative_rms_error_max"] < 0.01


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 100])
def test_int4_is_no_worse_than_rounding_the_full_range(columns: int) -> None:
    torch.manual_seed(columns)
    exact = torch.randn(50, columns) * 0.1 + 0.05
    exact[7] = 0
    matrix = _filled(exact, "int4")
    assert torch.equal(matrix.widened()[7], torch.zeros(columns))
    for group, near in zip(exact.split(32, dim=1), matrix.widened().split(32, dim=1), strict=True):
        low, high = group.amin(dim=1, keepdim=True), group.amax(dim=1, keepdim=True)
        scale, minimum = ((high - low) / 15).bfloat16().float(), low.bfloat16().float()
        full = ((group - minimum) / scale.clamp(min=1e-30)).round().clamp(0, 15) * scale + minimum
        error, limit = (near - group).square().sum(dim=1), (full - group).square().sum(dim=1)
        assert (error <= limit * 1.0001 + 1e-12).all()


def test_int4_keeps_the_embedding_and_the_head_in_int8() -> None:
    small = quantize(our_model(hf_model("llama2")), "int4")
    formats = {name: module.format for name, module in small.named_modules() if isinstance(module, QuantMatrix)}
    assert formats.pop("model.embed_tokens") == formats.pop("lm_head") == "int8"
    assert set(formats.values()) == {"int4"}


def _filled(weight: torch.Tensor, fmt: Format) -> QuantLinear:
    matrix = QuantLinear(*weight.shape, fmt, bias=False)
    matrix.fill(weight)
    matrix.widen(torch.float32)
    return matrix


@pytest.mark.parametrize(("fmt", "part"), [("int8", 0.38), ("int4", 0.3)])
def test_the_file_is_small(fmt: Format, part: float, tmp_path: Path) -> None:
    model = our_model(hf_model("llama2"))
    save_model(tmp_path / "wide", model)
    save_model(tmp_path / "small", quantize(model, fmt))
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "small")}
    assert size["small"] < part * size["wide"]
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "small/model.safetensors").items()}
    assert dtypes["lm_head.weight"] == dtypes["model.embed_tokens.weight"] == torch.int8
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == (torch.int8 if fmt == "int8" else torch.uint8)
    assert dtypes["lm_head.weight_scale"] == torch.bfloat16
    assert dtypes["model.norm.weight"] == torch.float32


def test_it_has_nothing_to_train() -> None:
    small = quantize(our_model(hf_model("llama-biased")))
    assert not [name for name, parameter in small.named_parameters() if parameter.requires_grad]


def test_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="quantised already"):
        quantize(quantize(our_model(hf_model("llama2"))))


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, quantize(our_model(hf_model("llama2"))))
    (tmp_path / "quantization.json").write_text(json.dumps({"format": "int3"}))
    with pytest.raises(ModelError, match='"int3"} is not supported'):
        load_model(tmp_path)


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_an_earlier_arrangement_is_refused(tmp_path: Path, fmt: Literal["int8", "int4"]) -> None:
    save_model(tmp_path, quantize(our_model(hf_model("llama2")), fmt))
    path = tmp_path / "quantization.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rotation": "hadamard-8x8", "group_columns": 64}))
    with pytest.raises(ModelError, match="an earlier version") as error:
        load_model(tmp_path)
    assert error.value.hint == "quantise the model that they came from again"


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(tmp_path, quantize(our_model(hf_model("llama2"))))
    weights: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].float()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head\.weight' is torch\.float32, not torch\.int8"):
        load_model(tmp_path)


def test_missing_scales_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(tmp_path, quantize(our_model(hf_model("llama2"))))
    weights: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight_scale"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head\.weight_scale' is missing"):
        load_model(tmp_path)


def test_every_family_can_be_quantised() -> None:
    for name in MODELS:
        model = our_model(hf_model(name))
        assert relative(_logits(quantize(model)), _logits(model)) < 0.08
