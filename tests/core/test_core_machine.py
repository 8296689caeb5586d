"""The machine's limits: plausible, cached, measured again when they may be wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from liuyi.core import machine
from liuyi.core.errors import OutOfDisk
from liuyi.core.machine import Machine, machine_limits
from waiting import wait_for

MEMORY_BYTES = 64 * 2**20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SECONDS_EACH", 0.05)
    monkeypatch.setattr(machine, "_DISK_BYTES", 2**20)
    monkeypatch.setattr(machine, "_beyond_cache", lambda: MEMORY_BYTES)
    monkeypatch.setattr(machine, "_busy_share", lambda: 0.0)


def test_figures_agree_with_another_library(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).normal(size=(2, 1024, 1024)).astype(np.float32)
    ours, theirs = [], []

    def agree() -> bool:
        """The best of both by now, for others may use the machine meanwhile."""
        ours.append(machine_limits(tmp_path / "machine.json", fresh=True))
        for _ in range(5):
            began = time.perf_counter()
            left @ right
            theirs.append(2 * 1024**3 / (time.perf_counter() - began))
        return max(each.gemm_flops["fp32"] for each in ours) > 0.2 * max(theirs)

    wait_for(agree)
    found = ours[-1]
    assert {"fp32", "bf16"} <= set(found.gemm_flops)
    assert found.flops("int4") is None
    assert 1e8 < found.memory_bytes_per_s < 1e13
    assert found.decode_tokens_per_s(1e6) == pytest.approx(found.memory_bytes_per_s / 1e6)
    assert found.decode_tokens_per_s(1e6, "cuda") is None or found.gpu
    assert found.disk_write_bytes_per_s > 1e5
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """Replaces measuring; gives the list of what was handed in."""
    calls: list[Machine] = []

    def measure(empty: Machine, folder: Path) -> Machine:
        calls.append(empty)
        figures = {"gemm_flops": {"fp32": 1e9 * len(calls)}, "memory_bytes_per_s": 1e9 / len(calls)}
        return empty.model_copy(update={**figures, "busy": len(calls) == 1})

    monkeypatch.setattr(machine, "_measure", measure)
    return calls


def test_a_busy_measurement_is_bettered_and_a_calm_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    cache = tmp_path / "machine.json"
    assert machine_limits(cache).busy
    second = machine_limits(cache)
    assert not second.busy
    assert second.gemm_flops == {"fp32": 2e9}
    assert second.memory_bytes_per_s == 1e9, "the better of both is kept"
    assert machine_limits(cache) == second
    assert len(calls) == 2
    assert machine_limits(cache, fresh=True).memory_bytes_per_s == 1e9 / 3


def test_another_machine_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    cache = tmp_path / "machine.json"
    machine_limits(cache)
    for name, changed in (("_threads", 77), ("cpu_model", "abacus"), ("_torch_version", "9.9"), ("_gpu_name", "G1")):
        machine_limits(cache)
        before = len(calls)
        monkeypatch.setattr(machine, name, lambda changed=changed: changed)
        machine_limits(cache)
        assert len(calls) == before + 1, name
    assert len(json.loads(cache.read_text())) == 5


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', '{"x": {"cpu": "y"}}', "\x00"])
def test_a_broken_cache_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    counting(monkeypatch)
    cache = tmp_path / "machine.json"
    cache.write_text(content)
    found = machine_limits(cache)
    assert Machine.model_validate(json.loads(cache.read_text())[found.fingerprint]) == found


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.os, "fsync", full)
    with pytest.raises(OutOfDisk, match="measuring the disk"):
        machine_limits(tmp_path / "machine.json")
    assert list(tmp_path.iterdir()) == []
