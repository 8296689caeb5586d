"""Writes `nf4_golden.json`: what bitsandbytes makes of a few matrices. Needs `pip install bitsandbytes`."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from test_model_nf4 import linear


def numbers(shape: tuple[int, int]) -> dict[str, object]:
    codes, state = functional.quantize_4bit(linear(*shape).weight.data, quant_type="nf4", compress_statistics=True)
    return {
        "shape": shape,
        "codes": bytes(codes.flatten().tolist()).hex(),
        "magnitudes": bytes(state.absmax.tolist()).hex(),
        "outer": state.state2.absmax.tolist(),
        "mean": float(torch.as_tensor(state.offset)),
    }


if __name__ == "__main__":
    golden = {
        "bitsandbytes": bitsandbytes.__version__,
        "matrices": [numbers(shape) for shape in ((23, 200), (80, 256))],
    }
    Path(__file__).with_name("nf4_golden.json").write_text(json.dumps(golden, indent=1) + "\n")
