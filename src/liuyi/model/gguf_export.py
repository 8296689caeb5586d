"""A decoder and its tokenizer as a GGUF file, for llama.cpp and what is built on it.

    report = export_gguf(model, tokenizer, Path("model.gguf"), "Q8_0")
    report.relative_rms_error                     # of the weights, by the number format alone

Norms and biases stay in float32. In Q4_0 the embeddings, and the matrix of the logits, are Q8_0: they are a small part
of a large model's bytes and most of its error. Matrices whose rows are no multiple of the format's blocks are F16.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from liuyi.core.errors import ModelError, did_you_mean
from liuyi.model.decoder import Decoder
from liuyi.model.gguf_config import config_metadata
from liuyi.model.gguf_formats import Bytes, Floats, Format, by_name
from liuyi.model.gguf_names import gguf_name, pairs_of_rows
from liuyi.model.gguf_vocabulary import vocabulary_metadata
from liuyi.model.gguf_write import OutTensor, write_gguf
from liuyi.model.quantize import quantization_of
from liuyi.model.tokenizer import Tokenizer

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""Number formats that a model can be written in, and llama.cpp's number for such a file."""


@dataclass
class GGUFReport:
    """What came of a model: formats with how many tensors have each, and the error that they make."""

    formats: Counter[str] = field(default_factory=Counter)
    relative_rms_error: float = 0.0
    """Root-mean-square error of all matrices relative to their own size."""
    worst: str = ""
    """The matrix with the largest error, by its name in the file."""
    worst_error: float = 0.0
    """Its root-mean-square error relative to its own size."""
    notes: list[str] = field(default_factory=list)
    """What llama.cpp does otherwise than the decoder."""
    _squares: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, name: str, exact: Floats, rounded: Floats) -> None:
        """Count the error of one matrix."""
        error = float(np.square(rounded - exact, dtype=np.float64).sum())
        size = float(np.square(exact, dtype=np.float64).sum())
        self._squares[0] += error
        self._squares[1] += size
        self.relative_rms_error = _ratio(*self._squares)
        if _ratio(error, size) > self.worst_error:
            self.worst, self.worst_error = name, _ratio(error, size)


def export_gguf(
    model: Decoder, tokenizer: Tokenizer, path: Path, form: str = "F16", *, name: str = "", licence: str = ""
) -> GGUFReport:
    """Write a model with its tokenizer and chat template.

    Raises ModelError if the format is not one of `FILE_TYPES`, if the model or the tokenizer is one that llama.cpp has
    not, or if a weight does not fit the format.
    """
    if form not in FILE_TYPES:
        raise ModelError(f"models are not written in '{form}'", hint=did_you_mean(form, FILE_TYPES))
    if quantization_of(model) is not None:
        raise ModelError("the model is quantised already", hint="export the one that it came from")
    config_part, rope_tensors, notes = config_metadata(model.config)
    metadata = {
        **config_part,
        "general.type": "model",
        **({"general.name": name} if name else {}),
        **({"general.license": licence} if licence else {}),
        "general.file_type": FILE_TYPES[form],
        "general.quantization_version": 2,
        **vocabulary_metadata(tokenizer, model.config.vocab_size, path),
    }
    report = GGUFReport(notes=notes)
    pairs = metadata["general.architecture"] == "llama"
    tensors = [_out(name, tensor, by_name("F32"), report) for name, tensor in rope_tensors.items()]
    for ours, tensor in model.state_dict().items():
        packed = _format(ours, tensor, form)
        report.formats[packed.name] += 1
        rows = pairs_of_rows(ours, tensor.detach(), model.config.head_dim) if pairs else tensor.detach()
        tensors.append(_out(gguf_name(ours), rows, packed, report))
    write_gguf(path, metadata, tensors)
    return report


def _format(name: str, tensor: Tensor, wanted: str) -> Format:
    if tensor.dim() == 1:
        return by_name("F32")
    if wanted == "Q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
        wanted = "Q8_0"
    form = by_name(wanted)
    return form if tensor.shape[-1] % form.values == 0 else by_name("F16")


def _out(name: str, tensor: Tensor, form: Format, report: GGUFReport) -> OutTensor:
    def data() -> Bytes:
        exact = tensor.float().cpu().contiguous().numpy()
        if not np.isfinite(exact).all():
            raise ModelError(f"the tensor '{name}' holds values that are not finite")
        with np.errstate(over="ignore"):
            packed = form.pack(exact)
        if form.name != "F32":
            rounded = form.widen(packed.data).reshape(exact.shape)
            if not np.isfinite(rounded).all():
                raise ModelError(f"the tensor '{name}' holds values too large for {form.name}", hint="BF16 has room")
            report.add(name, exact, rounded)
        return packed

    return OutTensor(name, tuple(tensor.shape), form, data)


def _ratio(error: float, size: float) -> float:
    return math.sqrt(error / size) if size else 0.0
