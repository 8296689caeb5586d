"""The same request gives the same answer alone, in company, over any cache, cut in any way, preempted and speculated.

In torch the tokens are equal; in native code every log-probability is, to the bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from infer_support import VOCAB, let_drafts_cost, random_adapter, tiny_model

from liuyi.infer.engine import Engine
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.request import Completion, Grammar, Request
from liuyi.infer.runner import Runner
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.infer.torch_runner import TorchRunner
from liuyi.kernels.library import KernelsAbsent, kernels
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

Open = Callable[[Decoder, int], Runner]


def in_torch(model: Decoder, blocks: int) -> Runner:
    return TorchRunner(model, blocks)


def native(weights: str, kv: str) -> Open:
    def opened(model: Decoder, blocks: int) -> Runner:
        try:
            kernels()
        except KernelsAbsent as absent:
            pytest.skip(str(absent))
        return NativeRunner(model, blocks, weights=weights, kv=kv)

    return opened


RUNNERS = {
    "torch fp32": in_torch,
    "native bf16, kv int8": native("bf16", "int8"),
    "native int8, kv bf16": native("int8", "bf16"),
}


def requests() -> list[Request]:
    chance = random.Random(5)
    stem = chance.choices(range(30, VOCAB), k=75)
    features: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.4, "top_p": 0.8, "seed": 4},
        {"temperature": 1.0, "seed": 5, "grammar": Grammar("regex", "(turn|on|the){9,30}[a-f厨]{3,9}")},
        {"adapter": "one", "temperature": 0.8, "seed": 6, "repetition_penalty": 1.1, "min_tokens": 30},
    ]
    return [
        Request(
            prompt_ids=[*stem[: chance.choice([20, 64, 75])], *chance.choices(range(30, VOCAB), k=1 + 7 * at)],
            max_tokens=60,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=2,
            prompt_logprobs=at == 4,
            **features[at % 5],
        )
        for at in range(8)
    ]


def circumstances(open_one: Open, model: Decoder, tokenizer: Tokenizer) -> dict[str, list[Completion]]:
    """The answers to the same requests in different circumstances."""
    asked = requests()

    def engine(blocks: int = 60, **options: Any) -> Engine:
        engine = Engine(open_one(model, blocks), tokenizer, **options)
        engine.adapters.load("one", random_adapter(model, rank=4, seed=1))
        return engine

    alone = [engine().generate([request])[0] for request in asked]
    warm = engine()
    found = {
        "alone": alone,
        "together": warm.generate(asked),
        "over a warm cache": warm.generate(asked),
        "in small pieces": engine(prefill_tokens=13).generate(asked),
        "in another order": engine(max_slots=3).generate(asked[::-1])[::-1],
        "speculated": _speculated(engine(drafter=PromptLookup(grams=(1,)), max_slots=2), asked),
    }
    small = engine(blocks=7, prefill_tokens=40)
    found["preempted"] = small.generate(asked)
    assert small.stats.preemptions
    return found


def _speculated(engine: Engine, asked: Sequence[Request]) -> list[Completion]:
    answers = engine.generate(asked)
    assert engine.stats.drafted_tokens
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNERS)
def test_the_same_request_gives_the_same_answer_in_every_circumstance(
    name: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_drafts_cost(monkeypatch)
    model = tiny_model(hidden_size=64, head_dim=16, num_hidden_layers=3)
    found = circumstances(RUNNERS[name], model, tokenizer)
    alone = found.pop("alone")
    for circumstance, answers in found.items():
        for one, other in zip(alone, answers, strict=True):
            if name.startswith("native"):
                assert one == other, circumstance
            else:
                assert one.token_ids == other.token_ids, circumstance
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
