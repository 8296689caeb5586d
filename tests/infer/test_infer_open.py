"""Runners in the format that was asked for, or that there is."""

from __future__ import annotations

import pytest
import torch
from infer_support import tiny_model

from liuyi.infer.open import blocks_that_fit, open_evaluated, open_runner
from liuyi.infer.runner import BLOCK_TOKENS
from liuyi.kernels.library import KernelsAbsent, kernels
from liuyi.model.decoder import Decoder


def small_model() -> Decoder:
    """Large enough to be worth native code."""
    return tiny_model(hidden_size=256, intermediate_size=512, head_dim=64)


def has_kernels() -> bool:
    try:
        kernels()
    except KernelsAbsent:
        return False
    return True


needs_kernels = pytest.mark.skipif(not has_kernels(), reason="the native kernels are not built here")


def test_a_tiny_model_and_the_reference_run_in_torch() -> None:
    assert open_runner(tiny_model()).name == "torch fp32"
    assert open_runner(small_model(), weights="reference", kv="bf16").name == "torch fp32, kv bf16"
    assert open_runner(small_model().to(torch.bfloat16), weights="reference").name == "torch bf16"
    assert open_evaluated(small_model(), slots=2).name == "torch fp32"


@needs_kernels
def test_a_larger_one_runs_in_native_code() -> None:
    assert open_runner(small_model()).name == "native int8, kv int8"
    assert open_runner(small_model(), weights="bf16").name == "native bf16, kv bf16"
    assert open_runner(tiny_model(hidden_size=256, head_dim=32), weights="int8").name == "native int8, kv bf16"
    assert open_runner(small_model(), weights="bf16", kv="int8").name == "native bf16, kv int8"


def test_without_kernels_it_runs_in_torch_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", "off")
    assert open_runner(small_model()).name == "torch fp32"
    assert open_runner(small_model(), weights="bf16").name == "torch bf16"
    with pytest.raises(KernelsAbsent, match="switched off"):
        open_runner(small_model(), weights="int4")
    with pytest.raises(KernelsAbsent, match="int8 need"):
        open_runner(small_model(), weights="fp32", kv="int8")


def test_room_is_what_was_asked_for_or_what_fits() -> None:
    model = tiny_model()
    assert open_runner(model, kv_tokens=100).blocks == 4
    assert open_runner(model, slots=3, max_tokens=65).blocks == 9
    assert open_runner(model, slots=3).blocks == 3 * model.config.context_tokens // BLOCK_TOKENS
    assert blocks_that_fit(1e15, "cpu", most=50) == 1
    assert blocks_that_fit(1e-3, "cpu", most=50) == 50
