"""A reward model: a decoder whose last hidden state of an answer becomes one number.

reward = RewardModel(model)                    # the value head begins at zero
save_reward(folder, reward, tokenizer)         # transformers reads it as a …ForSequenceClassification
reward = load_reward(folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import DTYPES, WEIGHTS, load_config, without_weights
from liuyi.model.decoder import Decoder, Linear
from liuyi.model.files import read_json, read_tensors, write_json, write_tensors
from liuyi.model.tokenizer import Tokenizer

_CAUSAL, _CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
HEAD = "score.weight"


class RewardModel(nn.Module):
    """A decoder and a value head; the decoder's own head is not used."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.score = Linear(decoder.config.hidden_size, 1).to(decoder.device)
        nn.init.zeros_(self.score.weight)
        if decoder.lm_head is not None:
            decoder.lm_head.requires_grad_(False)

    def forward(
        self,
        tokens: Tensor,
        ends: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rewards, float32 [answers], of what ends at the places `ends` [answers] of the flattened [rows, seq]."""
        hidden = self.decoder(tokens, positions=positions, segments=segments, compute_dtype=compute_dtype)
        return functional.linear(hidden.flatten(0, 1)[ends].float(), self.score.weight.float())[:, 0]


def save_reward(
    folder: Path, reward: RewardModel, tokenizer: Tokenizer, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder; `extra` becomes `liuyi.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = reward.decoder
    values = decoder.config.to_hf()
    values["architectures"] = [values["architectures"][0].replace(_CAUSAL, _CLASSIFIER)]
    values |= {"dtype": DTYPES[decoder.dtype], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    # Where a row is padded at its end, transformers looks for the last token that is none of these.
    values["pad_token_id"] = tokenizer.pad_id if tokenizer.pad_id is not None else values.get("pad_token_id")
    write_json(folder / "config.json", values)
    tensors = {name: tensor for name, tensor in decoder.state_dict().items() if name.startswith("model.")}
    write_tensors(folder / WEIGHTS, {**tensors, HEAD: reward.score.weight})
    tokenizer.save(folder)
    if extra:
        write_json(folder / "liuyi.json", extra)


def load_reward(folder: Path, dtype: torch.dtype = torch.float32) -> RewardModel:
    """Read a reward model's folder. Raises ModelError if it is none, or if a tensor is missing or of a wrong shape."""
    named = read_json(folder / "config.json", hint="a model folder has a config.json").get("architectures") or [""]
    if not str(named[0]).endswith(_CLASSIFIER):
        raise ModelError(f"{named[0]} is no reward model", where=str(folder), hint="align.reward makes one")
    with torch.device("meta"):
        reward = RewardModel(without_weights(load_config(folder), folder / "config.json"))
    reward.decoder.lm_head = None
    expected = {name.removeprefix("decoder."): tensor.shape for name, tensor in reward.state_dict().items()}
    found = read_tensors(folder / WEIGHTS)
    for name, shape in expected.items():
        if name not in found or found[name].shape != shape:
            raise ModelError(f"the tensor '{name}' is missing or not {list(shape)}", where=str(folder / WEIGHTS))
    weights = {name if name == HEAD else f"decoder.{name}": found[name].to(dtype) for name in expected}
    reward.load_state_dict(weights, assign=True)
    reward.decoder.reset_buffers("cpu")
    return reward
