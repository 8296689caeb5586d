"""What would run on a GPU runs on a device that is not the CPU (`other_device/`), and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run_cases(**variables: str) -> None:
    """In a process of its own: once torch has such a device, it takes it for this machine's accelerator."""
    paths = [HERE, *(HERE / room for room in ("align", "infer"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, HERE / "other_device" / "cases.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_nothing_on_a_device_meets_the_cpu() -> None:
    run_cases()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_what_the_cpu_does() -> None:
    run_cases(LIUYI_TEST_DEVICE="cuda:0")
