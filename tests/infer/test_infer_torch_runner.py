"""The torch runner: sequences read in pieces, among others, in any blocks, give what one forward pass gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from infer_support import VOCAB, tiny_model

from liuyi.infer.blocks import blocks_for
from liuyi.infer.runner import BLOCK_TOKENS, Batch, ids
from liuyi.infer.torch_runner import TorchRunner
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import quantize

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "every head its own keys": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "mistral with a window": {"family": "mistral", "sliding_window": 37},
    "qwen2": {"family": "qwen2", "attention_bias": True},
    "qwen2 with a window in one layer": {
        "family": "qwen2",
        "attention_bias": True,
        "sliding_window": 5,
        "layer_types": ("full_attention", "sliding_attention"),
    },
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 16},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
}
LENGTH = 110


class Player:
    """Feeds known texts to a runner, in the pieces it is told, and checks each piece against the whole forward pass."""

    def __init__(self, model: Decoder, texts: int, seed: int = 0) -> None:
        self.texts = torch.randint(VOCAB, (texts, LENGTH), generator=torch.Generator().manual_seed(3)).numpy()
        with torch.inference_mode():
            self.whole = model.logits(model(torch.from_numpy(self.texts)))
        blocks = list(range(texts * blocks_for(LENGTH)))
        random.Random(seed).shuffle(blocks)
        self.runner = TorchRunner(model, len(blocks))
        self.tables = ids(blocks).reshape(texts, -1)
        self.lengths = [0] * texts

    def batch(self, pieces: dict[int, int]) -> Batch:
        """The next so many tokens of some texts; logits after each of them."""
        texts, counts = list(pieces), list(pieces.values())
        begins = [self.lengths[text] for text in texts]
        spans = zip(texts, begins, counts, strict=True)
        tokens = np.concatenate([self.texts[text, begin : begin + count] for text, begin, count in spans])
        return Batch(
            tokens=ids(tokens),
            counts=ids(counts),
            lengths=ids(begins),
            tables=ids(self.tables[texts]),
            rows=ids(range(len(tokens))),
            adapters=ids([-1] * len(texts)),
        )

    def play(self, pieces: dict[int, int], error: float = 1e-5) -> None:
        logits = self.runner.logits(self.batch(pieces))
        at = 0
        for text, count in pieces.items():
            begin = self.lengths[text]
            expected = self.whole[text, begin : begin + count].float()
            assert (logits[at : at + count] - expected).norm() / expected.norm() < error
            at += count
            self.lengths[text] += count


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_of_ragged_sequences_equal_one_forward_pass(name: str) -> None:
    player = Player(tiny_model(**FAMILIES[name]), 6)
    player.play({0: 40, 1: 1, 2: 64})
    player.play({5: 5, 3: 90})
    player.play({0: 1, 1: 1, 2: 1, 3: 1, 5: 1})
    player.play({3: 1, 0: 30, 4: 100})
    player.play({5: 50, 1: 50})
    player.play({3: 1, 4: 1, 1: 2})


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_of_pieces_and_steps_back_equals_one_forward_pass(seed: int) -> None:
    chance = random.Random(seed)
    player = Player(tiny_model(seed=seed + 2, **FAMILIES[chance.choice(list(FAMILIES))]), 5, seed)
    for _ in range(20):
        text = chance.randrange(5)
        if chance.random() < 0.3:
            player.lengths[text] = chance.randint(0, player.lengths[text])
        most = chance.choice([1, 4, 60])
        room = {
            text: min(most, LENGTH - player.lengths[text]) for text in chance.sample(range(5), chance.randint(1, 5))
        }
        pieces = {text: chance.randint(1, most) for text, most in room.items() if most}
        if pieces:
            player.play(pieces)


def test_blocks_are_shared_by_those_that_begin_alike() -> None:
    player = Player(tiny_model(), 2)
    player.texts[1, :64] = player.texts[0, :64]
    with torch.inference_mode():
        model = player.runner.model
        player.whole = model.logits(model(torch.from_numpy(player.texts)))
    player.play({0: 70})
    player.tables[1, :2] = player.tables[0, :2]
    player.lengths[1] = 64
    player.play({0: 5, 1: 9})


def test_logits_and_hidden_states_are_given_for_the_rows_that_are_wanted() -> None:
    player = Player(tiny_model(), 2)
    batch = player.batch({0: 12, 1: 3})
    every = player.runner.logits(batch)
    some = Batch(batch.tokens, batch.counts, batch.lengths, batch.tables, ids([2, 11, 14]), batch.adapters)
    assert torch.equal(player.runner.logits(some), every[[2, 11, 14]])
    hidden = player.runner.hidden(some)
    assert hidden.shape == (3, 32)
    with torch.inference_mode():
        assert torch.allclose(player.runner.model.logits(hidden), every[[2, 11, 14]], atol=1e-5)
    none = Batch(batch.tokens, batch.counts, batch.lengths, batch.tables, ids([]), batch.adapters)
    assert player.runner.logits(none).shape == (0, VOCAB)


def test_a_long_chunk_goes_through_attention_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuyi.infer.torch_cache._MASKED", 1000)
    player = Player(tiny_model(**FAMILIES["mistral with a window"]), 2)
    player.play({0: 20, 1: 3})
    player.play({0: 80, 1: 60})


def test_kept_in_bfloat16_it_is_near() -> None:
    model = tiny_model()
    player = Player(model, 1)
    exact = player.runner.block_bytes
    player.runner = TorchRunner(model, 4, kv_dtype=torch.bfloat16)
    assert player.runner.name == "torch fp32, kv bf16"
    assert player.runner.block_bytes == exact // 2 == BLOCK_TOKENS * 2 * 2 * 2 * 2 * 8
    for _ in range(10):
        player.play({0: 7}, error=0.05)


def test_a_quantised_model_runs_in_bfloat16() -> None:
    model = quantize(tiny_model(family="qwen3", qk_norm=True)).to(torch.bfloat16)
    player = Player(model, 3)
    player.play({0: 20, 1: 1}, error=0.1)
    player.play({0: 1, 1: 1, 2: 40}, error=0.1)
