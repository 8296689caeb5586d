"""Kernels that need memory of their own, where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from liuyi.kernels.training import training_kernels

_WITHOUT_MEMORY = """
import resource
import sys

import torch

from liuyi.kernels.training import FlashShape, training_kernels

torch.set_num_threads(2)
native = training_kernels()
left, right, out = (torch.ones(*shape, dtype=torch.bfloat16) for shape in ((2048, 4096), (2048, 64), (4096, 64)))
shape = FlashShape(1, 2048, 8, 8, 128, 0, 0.1, 1024, 1024)
q, grad_q, grad_k, grad_v, mixed = (torch.ones(1, 2048, 8, 128, dtype=torch.bfloat16) for _ in range(5))
lse = torch.ones(1, 8, 2048)
run = {
    "product": lambda: native.product(left.T, right, out),
    "attention": lambda: native.attention(shape, q, q, q, None, mixed, lse),
    "attention_backward": lambda: native.attention_backward(
        shape, (q, q, q, None, mixed, lse), mixed, (grad_q, grad_k, grad_v)
    ),
}
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)
try:
    run[sys.argv[1]]()
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize("kernel", ["product", "attention", "attention_backward"])
def test_without_memory_for_it_that_is_said(kernel: str) -> None:
    """Threads that belong to nobody who could catch it notice it, and it must not end the process."""
    found = training_kernels()
    if found is None or not found.has_amx:
        pytest.skip("no AMX")
    done = subprocess.run([sys.executable, "-c", _WITHOUT_MEMORY, kernel], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"there is no memory for what liuyi_training_{kernel} keeps" in done.stdout
