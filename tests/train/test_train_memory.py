"""Training's memory lies on huge pages where the system gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from liuyi.train.memory import keeping_freed_memory

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="the system gives no huge pages"
)


def huge_bytes(tensor: Tensor) -> int:
    """How much of the mappings that hold a tensor is on huge pages, by the system's own account."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin < tensor.data_ptr() + tensor.nbytes and tensor.data_ptr() < end
        elif inside and first == "AnonHugePages:":
            total += int(line.split()[1]) << 10
    return total


def test_new_memory_is_huge_and_goes_back() -> None:
    with keeping_freed_memory():
        assert huge_bytes(torch.ones(64 * MIB // 4)) >= 60 * MIB
    assert huge_bytes(torch.ones(64 * MIB // 4)) == 0
