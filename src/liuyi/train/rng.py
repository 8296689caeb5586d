"""The states of Python's, NumPy's and torch's global random generators, as JSON values."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of the global generators of this process."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    devices = [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())]
    return {
        "python": random.getstate(),
        "numpy": [kind, _encode(np.asarray(keys).tobytes()), *rest],
        "torch": [_encode(state.numpy().tobytes()) for state in [torch.get_rng_state(), *devices]],
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` gave; states of devices that are not here are passed over."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), dtype=np.uint32), *rest))
    host, *devices = [torch.frombuffer(bytearray(base64.b64decode(part)), dtype=torch.uint8) for part in state["torch"]]
    torch.set_rng_state(host)
    for device, device_state in zip(range(torch.cuda.device_count()), devices, strict=False):
        torch.cuda.set_rng_state(device_state, device)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
