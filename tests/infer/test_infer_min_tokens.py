"""An answer does not end before it has so many tokens, and else is what it would be."""

from __future__ import annotations

import re

import pytest
import torch

from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.request import Completion, Grammar, Request
from liuyi.infer.runner import Runner
from liuyi.infer.torch_runner import TorchRunner
from liuyi.kernels.library import KernelsAbsent, kernels
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["torch", "native"])
def runner(request: pytest.FixtureRequest, model: Decoder) -> Runner:
    if request.param == "torch":
        return TorchRunner(model, 40)
    try:
        kernels()
    except KernelsAbsent as absent:
        pytest.skip(str(absent))
    return NativeRunner(model, 40, weights="fp32", kv="fp32")


def answer_of(runner: Runner, tokenizer: Tokenizer, request: Request) -> Completion:
    return Engine(runner, tokenizer).generate([request])[0]


def test_greedy_output_is_that_of_a_model_that_cannot_end_yet(
    runner: Runner, model: Decoder, tokenizer: Tokenizer
) -> None:
    prompt, ends = tokenizer.encode("turn on the"), list(range(30, 200))
    all_ends = [*ends, *Engine(runner, tokenizer).stop_ids]
    for min_tokens in (0, 1, 7):
        ids = list(prompt)
        while ids[-1] not in all_ends or len(ids) == len(prompt):
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([ids])))[0, -1]
            if len(ids) - len(prompt) < min_tokens:
                logits[all_ends] = -float("inf")
            ids.append(int(logits.argmax()))
        request = Request(prompt_ids=prompt, max_tokens=100, min_tokens=min_tokens, stop_token_ids=ends)
        answer = answer_of(runner, tokenizer, request)
        assert list(answer.token_ids) == ids[len(prompt) :]
        assert (answer.finish_reason, len(answer.token_ids) > min_tokens) == ("stop", True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_end_comes_as_soon_as_it_may(runner: Runner, tokenizer: Tokenizer, temperature: float) -> None:
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    for min_tokens in range(4):
        asked = Request(
            prompt_ids=[30], logit_bias={end: 100.0}, min_tokens=min_tokens, temperature=temperature, seed=min_tokens
        )
        answer = answer_of(runner, tokenizer, asked)
        assert answer.token_ids.index(end) == min_tokens == len(answer.token_ids) - 1


def test_a_stop_string_counts_if_it_ends_later(engine: Engine, tokenizer: Tokenizer) -> None:
    letters = {tokenizer.encode(letter)[0]: 60.0 for letter in "abc"}

    def said(min_tokens: int, *stop: str) -> Completion:
        asked = Request(
            prompt_ids=[30],
            max_tokens=60,
            logit_bias=letters,
            temperature=1.0,
            seed=1,
            stop=stop,
            min_tokens=min_tokens,
        )
        return engine.generate([asked])[0]

    free = said(0).text
    assert re.fullmatch("[abc]{60}", free)
    stop = free[3:5]
    for min_tokens in (0, 4, 5, 9):
        end = free.index(stop, max(0, min_tokens - 1)) + 2
        answer = said(min_tokens, stop)
        assert (answer.text, len(answer.token_ids), answer.finish_reason) == (free[: end - 2], end, "stop")


@pytest.mark.parametrize(("pattern", "length"), [("[ab]", 1), ("[ab]{3}", 3), ("[ab]+", 20), ("[ab]{3}|[ab]{30}", 20)])
def test_a_grammar_that_is_complete_ends_all_the_same(
    runner: Runner, tokenizer: Tokenizer, pattern: str, length: int
) -> None:
    ends = {token: 100.0 for token in Engine(runner, tokenizer).stop_ids}
    asked = Request(
        prompt_ids=[30], max_tokens=60, min_tokens=20, grammar=Grammar("regex", pattern), logit_bias=ends, seed=1
    )
    answer = answer_of(runner, tokenizer, asked)
    assert re.fullmatch(pattern, answer.text)
    assert len(answer.text) >= length
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("min_tokens", [-1, 9])
def test_more_than_may_come_is_refused(min_tokens: int) -> None:
    with pytest.raises(RequestError) as caught:
        Request(prompt_ids=[1], max_tokens=8, min_tokens=min_tokens)
    assert caught.value.param == "min_tokens"
