"""The engine against the plain forward pass, and against itself in other company."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from infer_support import tiny_model
from scipy import stats

from liuyi.core.errors import ModelError
from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import Matcher
from liuyi.infer.request import Completion, Grammar, Request
from liuyi.infer.runner import Batch
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassTurnOff"]},
        "slots": {"type": "object", "properties": {"area": {"type": "string"}}, "additionalProperties": False},
    },
    "required": ["intent", "slots"],
    "additionalProperties": False,
}


def prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    words = ["turn", "on", "the", "kitchen", "lights", "打开厨房的灯", "quick", "brown", "fox", "jumps"]
    return [tokenizer.encode(" ".join(itertools.islice(itertools.cycle(words), 1 + 3 * at))) for at in range(count)]


@torch.inference_mode()
def logprobs_of(model: Decoder, ids: list[int]) -> torch.Tensor:
    """Log-probabilities after each token, by one pass over the whole text without a cache."""
    return model.logits(model(torch.tensor([ids])))[0].double().log_softmax(-1)


def greedy(model: Decoder, prompt: list[int], count: int, stop: frozenset[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] not in stop):
        ids.append(int(logprobs_of(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def varied(tokenizer: Tokenizer, **more: Any) -> list[Request]:
    """Requests that use every feature there is."""
    features: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.5, "seed": 2, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.0, "seed": -7, "min_p": 0.05, "repetition_penalty": 1.2},
        {"schema": SCHEMA},
        {"schema": SCHEMA, "temperature": 1.0, "seed": 4},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3},
        {"temperature": 0.6, "seed": 5, "logit_bias": {30: 2.0, 31: -50.0}},
        {"stop": ["e", "灯"], "temperature": 0.9, "seed": 6},
        {"temperature": 2.0, "seed": 7, "ignore_eos": True},
        {"min_tokens": 12, "stop": ["e", "o", "灯"], "stop_token_ids": range(30, 90), "temperature": 1.2, "seed": 8},
    ]
    return [
        Request(prompt_ids=prompt, max_tokens=24, **(feature | more))
        for prompt, feature in zip(prompts(tokenizer, len(features)), features, strict=True)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_output_is_that_of_the_plain_forward_pass(tokenizer: Tokenizer, family: str) -> None:
    model = tiny_model(seed=4, family=family, qk_norm=family == "qwen3")
    engine = Engine(model, tokenizer, max_slots=3, prefill_tokens=7)
    asked = prompts(tokenizer, 7)
    for prompt, answer in zip(
        asked, engine.generate([Request(prompt_ids=p, max_tokens=16) for p in asked]), strict=True
    ):
        assert list(answer.token_ids) == greedy(model, prompt, 16, engine.stop_ids)
        assert answer.prompt_tokens == len(prompt)


def test_a_request_gives_the_same_tokens_alone_and_in_any_company(model: Decoder, tokenizer: Tokenizer) -> None:
    requests = varied(tokenizer)
    alone = [Engine(model, tokenizer, max_slots=1).generate([request])[0] for request in requests]
    for slots, prefill, order in ((10, 512, 1), (4, 5, 1), (3, 64, -1)):
        together = Engine(model, tokenizer, max_slots=slots, prefill_tokens=prefill).generate(requests[::order])[
            ::order
        ]
        assert together == alone
    assert len({answer.token_ids for answer in alone}) == len(alone)


def test_nothing_of_a_request_stays_in_its_slot(model: Decoder, tokenizer: Tokenizer) -> None:
    first = Request(
        prompt_ids=range(4, 220), max_tokens=9, logit_bias={40: 50.0}, repetition_penalty=2.0, frequency_penalty=1.0
    )
    second = Request(prompt_ids=[32], max_tokens=20, logit_bias={41: 0.5}, repetition_penalty=1.1, ignore_eos=True)
    after = Engine(model, tokenizer, max_slots=1).generate([first, second])[1]
    assert after == Engine(model, tokenizer, max_slots=1).generate([second])[0]


def test_seeds_that_are_not_given_come_from_the_engine(model: Decoder, tokenizer: Tokenizer) -> None:
    requests = [Request(prompt_ids=[20, 21], max_tokens=8, temperature=1.0)] * 3

    def answers(seed: int) -> list[Completion]:
        return Engine(model, tokenizer, max_slots=2, seed=seed).generate(requests)

    assert answers(1) == answers(1) != answers(2)
    assert len(set(answers(1))) == 3


def test_logprobs_are_the_models_own_whatever_shapes_the_choice(model: Decoder, tokenizer: Tokenizer) -> None:
    requests = varied(tokenizer, logprobs=True, top_logprobs=3)
    plain = Engine(model, tokenizer, max_slots=4).generate(varied(tokenizer))
    for request, answer, without in zip(
        requests, Engine(model, tokenizer, max_slots=4).generate(requests), plain, strict=True
    ):
        assert answer.token_ids == without.token_ids
        assert answer.text == without.text
        ids = [*request.prompt_ids, *answer.token_ids]
        expected = logprobs_of(model, ids)[len(request.prompt_ids) - 1 : -1]
        chosen = expected.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert answer.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
        best = expected.topk(3, dim=-1)
        assert [[value for _, value in top] for top in answer.top_logprobs] == [
            pytest.approx(row, abs=1e-4) for row in best.values.tolist()
        ]


def test_constrained_output_satisfies_its_schema(engine: Engine, tokenizer: Tokenizer) -> None:
    requests = [
        Request(prompt_ids=prompt, max_tokens=120, schema=SCHEMA, temperature=1.0, seed=at)
        for at, prompt in enumerate(prompts(tokenizer, 20))
    ]
    answers = engine.generate(requests)
    whole = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    assert len(whole) >= 10
    assert {answer["intent"] for answer in whole} == {"HassTurnOn", "HassTurnOff"}
    assert all(tokenizer.decode(answer.token_ids, skip_special_tokens=True) == answer.text for answer in answers)


def test_forced_tokens_change_the_number_of_steps_and_nothing_else(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        Request(prompt_ids=[40], max_tokens=limit, schema=SCHEMA, temperature=1.0, seed=at, logprobs=at % 2 == 0)
        for at, limit in enumerate([100, 100, 100, 100, 1, 2, 5, 9])
    ]

    def run() -> tuple[list[Completion], int]:
        engine = Engine(model, tokenizer)
        ids = [engine.submit(request) for request in requests]
        done: dict[int, Completion] = {}
        steps = 0
        while engine.has_work:
            done |= {update.id: update.completion for update in engine.step() if update.completion is not None}
            steps += 1
        return [done[id] for id in ids], steps

    jumping, few = run()
    monkeypatch.setattr(Matcher, "forced", lambda self: [])
    stepping, many = run()
    assert few < many
    for one, other in zip(jumping, stepping, strict=True):
        assert dataclasses.replace(one, logprobs=()) == dataclasses.replace(other, logprobs=())
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_updates_add_up_to_the_completion(engine: Engine, tokenizer: Tokenizer) -> None:
    requests = varied(tokenizer, logprobs=True, top_logprobs=2)
    ids = [engine.submit(request) for request in requests]
    parts: dict[int, list[Any]] = {id: [] for id in ids}
    while engine.has_work:
        for update in engine.step():
            parts[update.id].append(update)
    for id in ids:
        answer = parts[id][-1].completion
        assert all(update.completion is None for update in parts[id][:-1])
        assert "".join(update.text for update in parts[id]) == answer.text
        assert tuple(itertools.chain(*(update.token_ids for update in parts[id]))) == answer.token_ids
        assert tuple(itertools.chain(*(update.logprobs for update in parts[id]))) == answer.logprobs
        assert tuple(itertools.chain(*(update.top_logprobs for update in parts[id]))) == answer.top_logprobs
        assert len(answer.logprobs) == len(answer.top_logprobs) == len(answer.token_ids)


def test_special_tokens_show_in_the_text_where_a_request_wants_them(engine: Engine, tokenizer: Tokenizer) -> None:
    name, token = next(iter(tokenizer.special_tokens.items()))
    asked = {"prompt_ids": [30], "max_tokens": 2, "logit_bias": {token: 100.0}, "ignore_eos": True}
    hidden, shown = engine.generate([Request(**asked), Request(**asked, visible_ids=[token])])
    assert (hidden.text, shown.text) == ("", 2 * name)
    assert hidden.token_ids == shown.token_ids == (token, token)


def test_an_engine_forgets_what_it_is_told_to(engine: Engine) -> None:
    request = Request(prompt_ids=list(range(30, 130)), max_tokens=1)
    engine.generate([request, request])
    assert engine.stats.hit_tokens == 96
    engine.forget()
    engine.generate([request])
    assert engine.stats.hit_tokens == 96
    assert engine.stats.queried_tokens == 300


class TestEnds:
    def test_at_the_end_of_sequence_token(self, engine: Engine, tokenizer: Tokenizer) -> None:
        end = tokenizer.token_id("<|im_end|>")
        assert end is not None
        answer = engine.generate([Request(prompt_ids=[30], logit_bias={end: 100.0})])[0]
        assert (answer.token_ids, answer.text, answer.finish_reason) == ((end,), "", "stop")
        answer = engine.generate([Request(prompt_ids=[30], logit_bias={end: 100.0}, ignore_eos=True, max_tokens=3)])[0]
        assert (answer.token_ids, answer.finish_reason) == ((end,) * 3, "length")

    def test_at_a_stop_token(self, engine: Engine) -> None:
        free = engine.generate([Request(prompt_ids=[30, 31], max_tokens=12)])[0]
        last = free.token_ids[5]
        answer = engine.generate([Request(prompt_ids=[30, 31], max_tokens=12, stop_token_ids=[last])])[0]
        assert answer.token_ids == free.token_ids[: free.token_ids.index(last) + 1]
        assert answer.finish_reason == "stop"

    def test_before_a_stop_string(self, engine: Engine, tokenizer: Tokenizer) -> None:
        letters = {tokenizer.encode(letter)[0]: 60.0 for letter in "abc"}
        free = engine.generate([Request(prompt_ids=[30], max_tokens=40, logit_bias=letters, temperature=1.0, seed=1)])[
            0
        ]
        stop = free.text[9:12]
        cut = engine.generate(
            [Request(prompt_ids=[30], max_tokens=40, logit_bias=letters, temperature=1.0, seed=1, stop=[stop])]
        )[0]
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.finish_reason == "stop"

    def test_at_max_tokens_and_at_the_end_of_the_context(self, model: Decoder, tokenizer: Tokenizer) -> None:
        engine = Engine(model, tokenizer, max_slots=2, max_tokens=20)
        short, long = engine.generate(
            [
                Request(prompt_ids=[30], max_tokens=4, ignore_eos=True),
                Request(prompt_ids=[30] * 15, max_tokens=400, ignore_eos=True),
            ]
        )
        assert (len(short.token_ids), short.finish_reason) == (4, "length")
        assert (len(long.token_ids), long.finish_reason) == (5, "length")

    def test_within_what_a_grammar_forces(self, engine: Engine, tokenizer: Tokenizer) -> None:
        forced = Grammar("lark", 'start: "turn on the kitchen lights"')
        whole = engine.generate([Request(prompt_ids=[9], max_tokens=200, grammar=forced)])[0]
        assert (whole.text, whole.finish_reason) == ("turn on the kitchen lights", "stop")
        for room in range(1, len(whole.token_ids)):
            cut = engine.generate([Request(prompt_ids=[9], max_tokens=room, grammar=forced)])[0]
            assert (len(cut.token_ids), cut.finish_reason) == (room, "length")

    def test_when_the_grammar_breaks_the_request_fails_and_the_others_go_on(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = engine.submit(Request(prompt_ids=[30], schema=SCHEMA))
        other = engine.submit(Request(prompt_ids=[30], max_tokens=5, ignore_eos=True))
        engine.step()
        monkeypatch.setattr(Matcher, "problem", property(lambda self: "too complex"))
        updates = {}
        while engine.has_work:
            updates |= {update.id: update for update in engine.step()}
        assert isinstance(updates[broken].error, RequestError)
        assert updates[other].completion is not None
        assert engine.running == 0


class TestScheduling:
    def test_requests_join_and_leave_between_steps(self, model: Decoder, tokenizer: Tokenizer) -> None:
        engine = Engine(model, tokenizer, max_slots=2)
        for limit in (2, 6, 3):
            engine.submit(Request(prompt_ids=[30], max_tokens=limit, ignore_eos=True))
        occupied = []
        while engine.has_work:
            engine.step()
            occupied.append((engine.running, engine.waiting))
        # The first leaves after two steps; the third takes its slot in the step after.
        assert occupied == [(2, 1), (1, 1), (2, 0), (2, 0), (1, 0), (0, 0)]

    def test_prompts_are_read_in_bounded_chunks_and_never_hold_up_the_others(
        self, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = Engine(model, tokenizer, max_slots=4, prefill_tokens=16)
        speaker = engine.submit(Request(prompt_ids=[30], max_tokens=60, ignore_eos=True))
        engine.step()
        engine.submit(Request(prompt_ids=[31] * 100, max_tokens=1))
        engine.submit(Request(prompt_ids=[32] * 50, max_tokens=1))
        read: list[int] = []
        logits = engine.runner.logits

        def counted(batch: Batch) -> torch.Tensor:
            read.append(len(batch.tokens) - 1)
            return logits(batch)

        monkeypatch.setattr(engine.runner, "logits", counted)
        spoke = [any(update.id == speaker for update in engine.step()) for _ in range(10)]
        assert all(spoke)
        assert max(read) == 16
        assert sum(read) == 150

    def test_cancelling_frees_the_slot_at_once(self, model: Decoder, tokenizer: Tokenizer) -> None:
        engine = Engine(model, tokenizer, max_slots=1)
        first, second, third = (engine.submit(Request(prompt_ids=[30, at], max_tokens=50)) for at in (40, 41, 42))
        engine.step()
        assert engine.cancel(first)
        assert engine.cancel(second)
        assert not engine.cancel(first)
        assert (engine.running, engine.waiting) == (0, 1)
        left = []
        while engine.has_work:
            left += [update for update in engine.step() if update.completion]
        assert [update.id for update in left] == [third]
        fresh = Engine(model, tokenizer).generate([Request(prompt_ids=[30, 42], max_tokens=50)])
        assert left[0].completion == fresh[0]

    def test_generate_leaves_nothing_behind_when_it_is_interrupted(self, engine: Engine) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        requests = [Request(prompt_ids=[30], max_tokens=limit) for limit in (1, 50)]
        with pytest.raises(KeyboardInterrupt):
            engine.generate(requests, interrupt)
        assert not engine.has_work

    def test_progress_is_told(self, model: Decoder, tokenizer: Tokenizer) -> None:
        told: list[tuple[int, int]] = []
        requests = [Request(prompt_ids=[30], max_tokens=2, ignore_eos=True)] * 5
        Engine(model, tokenizer, max_slots=2).generate(requests, lambda *shown: told.append(shown))
        assert told == [(2, 5), (4, 5), (5, 5)]


def test_sampling_follows_the_models_distribution(model: Decoder, tokenizer: Tokenizer) -> None:
    prompt, count = [50, 60, 70], 4000
    engine = Engine(model, tokenizer, max_slots=64, max_tokens=8)
    answers = engine.generate(
        [Request(prompt_ids=prompt, max_tokens=1, temperature=0.7, top_k=6, seed=at) for at in range(count)]
    )
    drawn = np.bincount([answer.token_ids[0] for answer in answers], minlength=model.config.vocab_size)
    scaled = logprobs_of(model, prompt)[-1] / 0.7
    best = scaled.topk(6)
    expected = best.values.softmax(0).numpy()
    assert drawn.sum() == drawn[best.indices.numpy()].sum()
    assert stats.chisquare(drawn[best.indices.numpy()], expected * count).pvalue > 0.001


def test_a_high_penalty_ends_repetition(engine: Engine, tokenizer: Tokenizer) -> None:
    letters = {tokenizer.encode(letter)[0]: 40.0 for letter in "abcdefgh"}
    requests = [
        Request(prompt_ids=[30], max_tokens=8, logit_bias=letters, **penalty)
        for penalty in ({}, {"frequency_penalty": 30.0}, {"presence_penalty": 30.0})
    ]
    free, frequency, presence = (len(set(answer.token_ids)) for answer in engine.generate(requests))
    assert free < frequency == presence == 8


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt_ids": []}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**({"prompt_ids": [1]} | wrong))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt_ids": [30] * 256}, "prompt"),
        ({"prompt_ids": [-1]}, "prompt"),
        ({"prompt_ids": [10_000]}, "prompt"),
        ({"logit_bias": {10_000: 1.0}}, "logit_bias"),
        ({"schema": {"type": "strange"}}, "response_format"),
    ],
)
def test_what_this_model_cannot_answer_is_refused(engine: Engine, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(Request(**({"prompt_ids": [1]} | wrong)))
    assert caught.value.param == param
    assert not engine.has_work


def test_nothing_waits_where_one_of_several_requests_is_refused(engine: Engine, tokenizer: Tokenizer) -> None:
    good = Request(prompt_ids=tokenizer.encode("turn on"), max_tokens=3)
    with pytest.raises(RequestError):
        engine.generate([good, Request(prompt_ids=[10_000])])
    assert not engine.has_work
    assert engine.generate([good])[0].prompt_tokens == len(good.prompt_ids)


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="tokens"):
        Engine(tiny_model(vocab_size=300), tokenizer)


def test_greedy_generation_is_that_of_transformers(
    model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    save_model(folder, model, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    engine = Engine(model, tokenizer, max_slots=3)
    asked = prompts(tokenizer, 5)
    for penalty in (1.0, 1.4):
        requests = [Request(prompt_ids=prompt, max_tokens=20, repetition_penalty=penalty) for prompt in asked]
        for prompt, answer in zip(asked, engine.generate(requests), strict=True):
            ids = torch.tensor([prompt])
            expected = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=0,
            )
            assert list(answer.token_ids) == expected[0, len(prompt) :].tolist()


def test_blocks_that_were_never_used_take_no_memory(tokenizer: Tokenizer) -> None:
    import psutil

    def answer(model: Decoder) -> Engine:
        engine = Engine(model, tokenizer, max_slots=8)
        assert engine.generate([Request(prompt_ids=[30], max_tokens=4)])
        return engine

    answer(tiny_model(max_position_embeddings=256, num_key_value_heads=4))  # What the first one takes of a process.
    model = tiny_model(max_position_embeddings=65_536, num_key_value_heads=4)
    before = psutil.Process().memory_info().rss
    engine = answer(model)
    held = engine.runner.blocks * engine.runner.block_bytes
    assert held > 10**8
    assert psutil.Process().memory_info().rss - before < held / 4
