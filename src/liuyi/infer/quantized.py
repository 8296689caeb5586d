"""A quantised copy of a model folder."""

from __future__ import annotations

from pathlib import Path

from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.quantize import int8_error, quantize_int8


def quantize_folder(source: Path, target: Path) -> dict[str, float]:
    """Write the model in `source` with int8 matrices to `target`, its tokenizer with it.

    Gives the error of the weights relative to their size: the mean over the matrices, and the largest.
    Raises ModelError if the model cannot be read or is quantised already.
    """
    model = load_model(source)
    small = quantize_int8(model)
    save_model(target, small, source)
    return int8_error(model, small)
