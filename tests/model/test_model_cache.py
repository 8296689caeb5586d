"""The cache: a sequence computed in pieces, among others, gives what one forward pass gives."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import MODELS, hf_model, our_model, relative

from liuyi.core.errors import ModelError
from liuyi.model.cache import SlotCache
from liuyi.model.decoder import Decoder

FAMILIES = [name for name in MODELS if name != "dynamic"]


class Player:
    """Feeds known texts to slots, in the pieces it is told, and checks every piece against the whole forward pass."""

    def __init__(self, model: Decoder, slots: int, length: int = 40) -> None:
        self.model = model
        self.cache = SlotCache(model.config, slots, length)
        generator = torch.Generator().manual_seed(3)
        self.texts = torch.randint(model.config.vocab_size, (slots, length), generator=generator)
        with torch.inference_mode():
            self.whole = model.logits(model(self.texts))

    def play(self, slots: list[int], counts: list[int]) -> None:
        tokens = torch.zeros(len(slots), max(counts), dtype=torch.long)
        begins = [self.cache.lengths[slot] for slot in slots]
        for row, (slot, begin, count) in enumerate(zip(slots, begins, counts, strict=True)):
            tokens[row, :count] = self.texts[slot, begin : begin + count]
        with torch.inference_mode():
            turn = self.cache.extend(slots, counts)
            logits = self.model.logits(self.model(tokens, cache=turn))
            turn.commit()
        for row, (slot, begin, count) in enumerate(zip(slots, begins, counts, strict=True)):
            assert relative(logits[row, :count], self.whole[slot, begin : begin + count]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_of_ragged_sequences_equal_one_forward_pass(name: str) -> None:
    player = Player(our_model(hf_model(name)), slots=9)
    player.play([0, 1, 2], [7, 1, 12])
    player.play([8, 3], [5, 9])
    player.play([0, 1, 2, 3, 8], [1, 1, 1, 1, 1])
    player.play([8, 2, 0], [1, 1, 1])
    player.play([1, 7], [6, 3])
    player.play([7, 0], [1, 4])
    player.play([3], [1])


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_of_prefill_decode_truncation_and_reuse_equals_one_forward_pass(seed: int) -> None:
    chance = random.Random(seed)
    player = Player(our_model(hf_model(chance.choice(FAMILIES))), slots=6)
    lengths = player.cache.lengths
    for _ in range(25):
        slot = chance.randrange(6)
        match chance.randrange(6):
            case 0:
                player.cache.free(slot)
            case 1:
                player.cache.truncate(slot, chance.randint(0, lengths[slot]))
            case 2:
                player.play([slot], [chance.randint(1, 40 - lengths[slot])]) if lengths[slot] < 40 else None
            case _:
                slots = [s for s in chance.sample(range(6), chance.randint(1, 6)) if lengths[s] < 37]
                most = chance.choice([1, 3])
                if slots:
                    player.play(slots, [chance.randint(1, most) for _ in slots])


def test_nothing_counts_until_committed() -> None:
    player = Player(our_model(hf_model("smollm2")), slots=2)
    player.play([0], [5])
    with torch.inference_mode():
        player.model(torch.tensor([[99, 98]]), cache=player.cache.extend([0], [2]))
    assert player.cache.lengths == [5, 0]
    player.play([0, 1], [3, 3])


def test_a_request_alone_and_in_a_batch_agree_to_rounding() -> None:
    model = our_model(hf_model("qwen3"))
    alone, among = Player(model, slots=8), Player(model, slots=8)
    alone.play([5], [9])
    among.play([1, 5, 6], [14, 9, 2])
    for _ in range(6):
        alone.play([5], [1])
        among.play([6, 5, 1], [1, 1, 1])
    kept = (slice(None), 5, slice(None), slice(15))
    assert relative(among.cache.keys[kept], alone.cache.keys[kept]) < 1e-5
    assert relative(among.cache.values[kept], alone.cache.values[kept]) < 1e-5


def test_kept_in_bfloat16_it_is_near() -> None:
    model = our_model(hf_model("llama2"))
    tokens = torch.arange(20)[None]
    cache = SlotCache(model.config, 1, 20, dtype=torch.bfloat16)
    with torch.inference_mode():
        for at in range(20):
            turn = cache.extend([0], [1])
            last = model.logits(model(tokens[:, at : at + 1], cache=turn))
            turn.commit()
        assert 0 < relative(last[0, 0], model.logits(model(tokens))[0, -1]) < 0.03
    assert cache.size_bytes == 2 * 3 * 1 * 6 * 20 * 8 * 2


@pytest.mark.parametrize(
    ("slots", "counts", "message"),
    [
        ([0, 0], [1, 1], "each slot once"),
        ([0], [1, 1], "each slot once"),
        ([], [], "each slot once"),
        ([4], [1], "no slot 4"),
        ([-1], [1], "no slot -1"),
        ([0], [0], "cannot take 0 more"),
        ([0], [9], "holds 0 tokens and cannot take 9 more"),
    ],
)
def test_impossible_extensions_are_refused(slots: list[int], counts: list[int], message: str) -> None:
    cache = SlotCache(our_model(hf_model("llama2")).config, 4, 8)
    with pytest.raises(ModelError, match=message):
        cache.extend(slots, counts)
    assert cache.lengths == [0, 0, 0, 0]


def test_truncation_beyond_the_end_is_refused() -> None:
    cache = SlotCache(our_model(hf_model("llama2")).config, 1, 8)
    with pytest.raises(ModelError, match="holds 0 tokens and cannot be cut to 1"):
        cache.truncate(0, 1)
