"""Beam search finds what that of `transformers` finds on the same random model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from infer_support import VOCAB, tiny_model

from liuyi.infer.beam import BeamSearch, beam_search
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def theirs(model: Decoder) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    twin = LlamaForCausalLM(LlamaConfig(**model.config.to_hf()))
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin.eval()


@pytest.mark.parametrize(
    "prompt", ["turn on", "打开厨房的灯，把", "The quick brown fox jumps over the lazy dog, again"]
)
@pytest.mark.parametrize(
    ("width", "length_penalty", "early_stopping"),
    [
        (1, 1.0, False),
        (2, 1.0, False),
        (4, 1.0, True),
        (4, 0.0, False),
        (5, 2.0, False),
        (5, -1.0, False),
        (8, 0.6, True),
    ],
)
def test_finds_what_transformers_finds(
    model: Decoder,
    tokenizer: Tokenizer,
    theirs: Any,
    prompt: str,
    width: int,
    length_penalty: float,
    early_stopping: bool,
) -> None:
    engine = Engine(model, tokenizer, max_slots=8)
    # Tokens that end some beams before others, with these prompts.
    engine.stop_ids = frozenset([56, 136, 281, 377])
    ids = tokenizer.encode(prompt)
    found = beam_search(
        engine, ids, width=width, max_tokens=14, length_penalty=length_penalty, early_stopping=early_stopping
    )
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([ids]),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=14,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            eos_token_id=sorted(engine.stop_ids),
            pad_token_id=VOCAB - 1,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = [[token for token in row[len(ids) :].tolist() if token != VOCAB - 1] for row in expected.sequences]
    assert [list(hypothesis.token_ids) for hypothesis in found] == texts
    if width > 1:
        scores = [hypothesis.score for hypothesis in found]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)
    for hypothesis in found:
        assert (hypothesis.finish_reason == "stop") == (hypothesis.token_ids[-1] in engine.stop_ids)
    assert width < 4 or length_penalty > 1 or any(hypothesis.finish_reason == "stop" for hypothesis in found)


def test_scores_are_those_of_the_model(model: Decoder, engine: Engine, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("turn")
    for hypothesis in beam_search(engine, ids, width=3, max_tokens=6, length_penalty=0.5):
        whole = torch.tensor([[*ids, *hypothesis.token_ids]])
        with torch.no_grad():
            logprobs = model.logits(model(whole))[0].log_softmax(-1)
        total = sum(float(logprobs[len(ids) - 1 + at, token]) for at, token in enumerate(hypothesis.token_ids))
        assert hypothesis.logprob == pytest.approx(total, abs=1e-4)
        assert hypothesis.score == pytest.approx(total / len(hypothesis.token_ids) ** 0.5, abs=1e-4)


def test_beams_share_what_they_have_in_common(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(tiny_model(max_position_embeddings=1024), tokenizer, max_slots=8)
    ids = tokenizer.encode("again and again, " * 60)
    beam_search(engine, ids, width=4, max_tokens=10)
    stats = engine.stats
    # Nine steps of four beams ask for the prompt again, and compute only what lies beyond its last whole block.
    assert stats.hit_tokens >= 9 * 4 * (len(ids) - 32)


def test_a_full_context_ends_the_search(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_slots=4, max_tokens=20)
    found = beam_search(engine, list(range(10, 25)), width=2, max_tokens=100)
    assert max(len(hypothesis.token_ids) for hypothesis in found) <= 5
    with pytest.raises(RequestError, match="context"):
        beam_search(engine, list(range(10, 40)), width=2, max_tokens=100)


def test_the_width_is_limited() -> None:
    with pytest.raises(RequestError, match="between 1 and 19"):
        BeamSearch([1], width=20, max_tokens=3, stop_ids=[0])
