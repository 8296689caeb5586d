"""Beam search finds what that of `transformers` finds on the same random model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from infer_support import VOCAB, tiny_model

from liuyi.infer.beam import BeamOptions, BeamSearch, beam_search
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.request import Request
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def theirs(model: Decoder) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    twin = LlamaForCausalLM(LlamaConfig(**model.config.to_hf()))
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin.eval()


@pytest.mark.parametrize("prompt", ["打开厨房的灯，把", "The quick brown fox jumps over the lazy dog, again"])
@pytest.mark.parametrize("min_tokens", [0, 7])
@pytest.mark.parametrize(
    ("width", "length_penalty", "early_stopping"),
    [(1, 1.0, False), (4, 1.0, True), (4, 0.0, False), (5, -1.0, False), (5, 2.0, False), (8, 0.6, False)],
)
def test_finds_what_transformers_finds(
    model: Decoder,
    tokenizer: Tokenizer,
    theirs: Any,
    prompt: str,
    width: int,
    length_penalty: float,
    early_stopping: bool,
    min_tokens: int,
) -> None:
    engine = Engine(model, tokenizer, max_slots=8)
    # Tokens that end some beams before others, with these prompts.
    engine.stop_ids = frozenset([56, 136, 281, 377])
    ids = tokenizer.encode(prompt)
    options = BeamOptions(length_penalty, early_stopping)
    request = Request(prompt_ids=ids, max_tokens=14, min_tokens=min_tokens)
    found = beam_search(engine, request, width=width, options=options)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([ids]),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=14,
            min_new_tokens=min_tokens,
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
    assert min(len(hypothesis.token_ids) for hypothesis in found) > min_tokens
    for hypothesis in found:
        assert (hypothesis.finish_reason == "stop") == (hypothesis.token_ids[-1] in engine.stop_ids)
    assert width < 4 or length_penalty > 1 or any(hypothesis.finish_reason == "stop" for hypothesis in found)


def test_scores_are_those_of_the_model(model: Decoder, engine: Engine, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("turn")
    for hypothesis in beam_search(
        engine, Request(prompt_ids=ids, max_tokens=6), width=3, options=BeamOptions(length_penalty=0.5)
    ):
        whole = torch.tensor([[*ids, *hypothesis.token_ids]])
        with torch.no_grad():
            logprobs = model.logits(model(whole))[0].log_softmax(-1)
        total = sum(float(logprobs[len(ids) - 1 + at, token]) for at, token in enumerate(hypothesis.token_ids))
        assert hypothesis.logprob == pytest.approx(total, abs=1e-4)
        assert hypothesis.score == pytest.approx(total / len(hypothesis.token_ids) ** 0.5, abs=1e-4)


def test_beams_share_what_they_have_in_common(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(tiny_model(max_position_embeddings=1024), tokenizer, max_slots=8)
    ids = tokenizer.encode("again and again, " * 60)
    beam_search(engine, Request(prompt_ids=ids, max_tokens=10), width=4)
    stats = engine.stats
    # Nine steps of four beams ask for the prompt again, and compute only what lies beyond its last whole block.
    assert stats.hit_tokens >= 9 * 4 * (len(ids) - 32)


def test_a_full_context_ends_the_search(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_slots=4, max_tokens=20)
    found = beam_search(engine, Request(prompt_ids=range(10, 25), max_tokens=100), width=2)
    assert max(len(hypothesis.token_ids) for hypothesis in found) <= 5
    with pytest.raises(RequestError, match="context"):
        beam_search(engine, Request(prompt_ids=range(10, 40)), width=2)


def test_further_ends_are_heeded(engine: Engine, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("turn")
    free = beam_search(engine, Request(prompt_ids=ids, max_tokens=4), width=2)
    end = free[0].token_ids[1]
    found = beam_search(engine, Request(prompt_ids=ids, max_tokens=4, stop_token_ids=[end]), width=2)
    assert all(end not in hypothesis.token_ids[:-1] for hypothesis in found)


@pytest.mark.parametrize(
    ("request_", "width", "param"),
    [
        (Request(prompt_ids=[1]), 20, "n"),
        (Request(prompt_ids=[1]), 0, "n"),
        (Request(prompt_ids=[1], temperature=1), 2, "temperature"),
        (Request(prompt_ids=[1], logit_bias={1: 1}), 2, "logit_bias"),
        (Request(prompt_ids=[1], stop=["x"]), 2, "stop"),
        (Request(prompt_ids=[1], schema={}), 2, "schema"),
    ],
)
def test_what_a_search_cannot_heed_is_refused(request_: Request, width: int, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        BeamSearch(request_, width=width, stop_ids=[0], context=10)
    assert caught.value.param == param
