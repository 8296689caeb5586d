"""An adapter in the weights themselves, and what their number format made of it.

merged, error = merge_adapter(model, adapter)                    # as the model's weights are
merged, error = merge_adapter(model, adapter, torch.bfloat16)    # or in another format
error.metrics()
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from liuyi.model.adapter import Adapter
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import Format, quantization_of, quantize, widened_copy


@dataclass(frozen=True)
class MergeError:
    """How far the merged weights are from the exact ones, which have the adapter's product added in float64."""

    matrices: Mapping[str, float]
    """Root-mean-square error of each changed matrix, relative to its size."""
    relative_rms_error: float
    """The same over all changed matrices."""
    change_error: float
    """The error relative to the change itself: 1 where the change was lost."""

    def metrics(self) -> dict[str, float]:
        """For a manifest."""
        errors = self.matrices.values()
        return {
            "relative_rms_error": self.relative_rms_error,
            "matrix_error_mean": sum(errors) / len(errors),
            "matrix_error_max": max(errors),
            "change_error": self.change_error,
        }


@torch.no_grad()
def merge_adapter(
    model: Decoder, adapter: Adapter, form: torch.dtype | Format | None = None
) -> tuple[Decoder, MergeError]:
    """A copy of the model with the adapter in its weights, in the format `form` (the model's own when None).

    Quantised weights are widened, changed and quantised again. Raises ModelError if the adapter does not fit.
    """
    adapter.check(model.config)
    form = form or quantization_of(model)
    merged = copy.deepcopy(model) if quantization_of(model) is None else widened_copy(model)
    if form is not None:
        merged = merged.float()
    for name, change in adapter.modules.items():
        weight = merged.get_parameter(f"{name}.weight")
        weight.copy_(change.merged(weight))
    if isinstance(form, torch.dtype):
        merged = merged.to(form)
    elif form is not None:
        merged = quantize(merged, form)
    return merged, _error(model, adapter, merged)


def _error(model: Decoder, adapter: Adapter, merged: Decoder) -> MergeError:
    matrices: dict[str, float] = {}
    error = weight = change = 0.0
    for name, low_rank in adapter.modules.items():
        before, after = (each.get_submodule(name).widened().double() for each in (model, merged))  # type: ignore[operator]
        exact = low_rank.merged(before)
        off, size = float((after - exact).square().sum()), float(exact.square().sum())
        matrices[name] = _ratio(off, size)
        error, weight, change = error + off, weight + size, change + float((exact - before).square().sum())
    return MergeError(matrices, _ratio(error, weight), _ratio(error, change))


def _ratio(error: float, size: float) -> float:
    return math.sqrt(error / size) if size else 0.0
