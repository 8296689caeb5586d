"""A GGUF file as a decoder and a tokenizer.

model, tokenizer = load_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
save_model(folder, model, tokenizer)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import without_weights
from liuyi.model.decoder import Decoder
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_config import ROPE_FACTORS, read_config
from liuyi.model.gguf_names import decoder_name, halves_of_heads
from liuyi.model.gguf_vocabulary import read_vocabulary
from liuyi.model.tokenizer import Tokenizer


def load_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer of a GGUF file; quantised weights are widened to `dtype`, one tensor after the other.

    Raises ModelError if the architecture, the tokenizer or a tensor's format is not supported, naming it.
    """
    file = GGUF(path)
    if (parts := file.metadata.get("split.count", 1)) != 1:
        raise ModelError(
            f"is one of {parts} parts of a model",
            where=str(path),
            hint="put them together first: llama-gguf-split --merge FIRST_PART WHOLE",
        )
    config = read_config(file)
    model = without_weights(config, path)
    expected = model.state_dict()
    weights: dict[str, Tensor] = {}
    for name in file.tensor_names:
        if name == ROPE_FACTORS:
            continue
        ours = decoder_name(name)
        if ours not in expected:
            raise ModelError(f"holds the tensor '{name}', which a {config.family} model has not", where=str(path))
        if file.shape(name) != tuple(expected[ours].shape):
            shapes = f"{list(file.shape(name))}; its metadata asks for {list(expected[ours].shape)}"
            raise ModelError(f"the tensor '{name}' has the shape {shapes}", where=str(path))
        tensor = file.tensor(name)
        if file.metadata["general.architecture"] == "llama":
            tensor = halves_of_heads(ours, tensor, config.head_dim)
        weights[ours] = tensor.to(dtype).contiguous()
    missing = [name for name in expected if name not in weights]
    if missing:
        raise ModelError(f"has no tensor for '{missing[0]}'", where=str(path))
    tokenizer = read_vocabulary(file)
    model.load_state_dict(weights, assign=True)
    model.reset_buffers("cpu")
    return model, tokenizer
