"""Scheduling, blocks and preemption under an engine whose model notices every token that is not where it belongs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from history_runner import HistoryRunner, logits_after
from infer_support import VOCAB, tiny_model
from torch import Tensor

from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.request import Completion, Request
from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Ids
from liuyi.infer.sampling import choose
from liuyi.model.tokenizer import Tokenizer

CONFIG = tiny_model(max_position_embeddings=4096).config


def engine_of(tokenizer: Tokenizer, blocks: int, **options: Any) -> tuple[Engine, HistoryRunner]:
    runner = HistoryRunner(CONFIG, blocks)
    return Engine(runner, tokenizer, **options), runner


def plain(prompt: list[int], count: int) -> tuple[int, ...]:
    """Greedy output of the history model."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits_after(text, VOCAB).argmax()))
    return tuple(text[len(prompt) :])


class AskedRunner(HistoryRunner):
    """Notes what the engine asks of it where it wants results."""

    def __init__(self, blocks: int) -> None:
        super().__init__(CONFIG, blocks)
        self.asked: set[str] = set()

    def logits(self, batch: Batch) -> Tensor:
        if len(batch.rows):
            self.asked.add("logits")
        return super().logits(batch)

    def choose(self, batch: Batch, draws: Draws | None = None) -> Ids:
        self.asked.add("tokens")
        return choose(super().logits(batch), draws)


def finish(engine: Engine) -> dict[int, Completion]:
    done: dict[int, Completion] = {}
    while engine.has_work:
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    return done


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_goes_and_is_preempted_every_answer_is_right(tokenizer: Tokenizer, seed: int) -> None:
    chance = random.Random(seed)
    engine, runner = engine_of(tokenizer, blocks=14, max_slots=5, prefill_tokens=chance.choice([7, 40, 200]))
    stems = [text(at, 100) for at in range(3)]
    asked: dict[int, Request] = {}
    done: dict[int, Completion] = {}
    for step in range(400):
        if step < 300 and chance.random() < 0.12:
            prompt = chance.choice(stems)[: chance.randint(1, 100)] + text(step, chance.randint(1, 40))
            request = Request(
                prompt_ids=prompt,
                max_tokens=chance.randint(1, 90),
                ignore_eos=True,
                priority=chance.randint(-1, 1),
                prompt_logprobs=chance.random() < 0.2,
            )
            asked[engine.submit(request)] = request
        if asked and chance.random() < 0.02:
            engine.cancel(chance.choice(list(asked)))
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    done |= finish(engine)
    assert len(done) > 15
    assert engine.stats.preemptions
    assert engine.stats.hit_tokens
    assert (engine.stats.blocks_used, engine.running, engine.waiting) == (0, 0, 0)
    for id, answer in done.items():
        assert answer.token_ids == plain(list(asked[id].prompt_ids), asked[id].max_tokens)
        if asked[id].prompt_logprobs:
            prompt = list(asked[id].prompt_ids)
            expected = [
                float(logits_after(prompt[:at], VOCAB).log_softmax(0)[prompt[at]]) for at in range(1, len(prompt))
            ]
            assert answer.prompt_logprobs == pytest.approx(expected, abs=1e-4)
    assert runner.batches


@pytest.mark.parametrize(("stretch", "most"), [(None, 2048), (1.6, 512)])
def test_a_step_reads_less_where_somebody_may_wait_for_it(
    tokenizer: Tokenizer, stretch: float | None, most: int
) -> None:
    engine, runner = engine_of(tokenizer, blocks=100, stretch=stretch)
    for seed in range(2):
        engine.submit(Request(prompt_ids=text(seed, 1100), max_tokens=1))
    engine.step()
    assert runner.read == [most]


def test_a_prefix_is_read_once_even_by_those_that_come_together(tokenizer: Tokenizer) -> None:
    engine, runner = engine_of(tokenizer, blocks=400, max_slots=32, prefill_tokens=512)
    stem = text(0, 2048)
    requests = [Request(prompt_ids=[*stem, at], max_tokens=2, ignore_eos=True) for at in range(32)]
    answers = engine.generate(requests)
    assert sum(runner.read) == 2048 + 32 + 32
    assert engine.stats.hit_tokens == 31 * 2048
    assert all(
        answer.token_ids == plain(list(request.prompt_ids), 2)
        for answer, request in zip(answers, requests, strict=True)
    )


def test_a_whole_prompt_that_is_cached_is_read_from_its_last_block_on(tokenizer: Tokenizer) -> None:
    engine, runner = engine_of(tokenizer, blocks=20)
    request = Request(prompt_ids=text(1, 96), max_tokens=1)
    first = engine.generate([request])
    assert engine.generate([request]) == first
    assert runner.read == [96, 32]
    # A conversation goes on: the answer's blocks are found too.
    engine.forget()
    runner.batches.clear()
    answer = engine.generate([Request(prompt_ids=text(2, 60), max_tokens=40, ignore_eos=True)])[0]
    engine.generate([Request(prompt_ids=[*text(2, 60), *answer.token_ids, 5], max_tokens=1)])
    assert runner.read[-1] == 101 - 96


def test_log_probabilities_of_a_prompt_are_not_lost_to_the_cache(tokenizer: Tokenizer) -> None:
    engine, runner = engine_of(tokenizer, blocks=40)
    prompt = text(3, 300)
    request = Request(prompt_ids=prompt, max_tokens=1, prompt_logprobs=True, top_logprobs=2)
    cold = engine.generate([request])[0]
    warm = engine.generate([request])[0]
    assert cold == warm
    assert len(cold.prompt_logprobs) == len(cold.prompt_top_logprobs) == 299
    assert max(len(batch.rows) for batch in runner.batches) <= 128


def test_a_prompt_may_be_scored_without_an_answer(tokenizer: Tokenizer) -> None:
    engine, _ = engine_of(tokenizer, blocks=40)
    (answer,) = engine.generate([Request(prompt_ids=[5, 6, 7], max_tokens=0, prompt_logprobs=True)])
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((), "", "length")
    assert len(answer.prompt_logprobs) == 2


def test_the_lowest_priority_number_goes_first_and_takes_the_place_of_a_higher(tokenizer: Tokenizer) -> None:
    engine, _ = engine_of(tokenizer, blocks=40, max_slots=1)
    low = engine.submit(Request(prompt_ids=text(0, 50), max_tokens=10, priority=5, ignore_eos=True))
    engine.step()
    engine.step()
    middle, high = (
        engine.submit(Request(prompt_ids=text(at, 50), max_tokens=3, priority=priority, ignore_eos=True))
        for at, priority in ((1, 0), (2, -3))
    )
    order = list(done := finish(engine))
    assert order == [high, middle, low]
    assert engine.stats.preemptions == 1
    assert done[low].token_ids == plain(text(0, 50), 10)
    assert done[low].cached_tokens == 0  # What it found again was its own.
    again = engine.generate([Request(prompt_ids=text(0, 50), max_tokens=1)])[0]
    assert again.cached_tokens == 50 // BLOCK_TOKENS * BLOCK_TOKENS


def test_a_preempted_request_does_not_publish_twice(tokenizer: Tokenizer) -> None:
    engine, _ = engine_of(tokenizer, blocks=6, max_slots=3)
    ids = [engine.submit(Request(prompt_ids=text(at, 20), max_tokens=100, ignore_eos=True)) for at in range(3)]
    told: dict[int, list[int]] = {id: [] for id in ids}
    while engine.has_work:
        for update in engine.step():
            told[update.id] += update.token_ids
    assert engine.stats.preemptions
    for at, id in enumerate(ids):
        assert tuple(told[id]) == plain(text(at, 20), 100)


def test_cancelling_frees_blocks_at_once(tokenizer: Tokenizer) -> None:
    engine, _ = engine_of(tokenizer, blocks=40)
    ids = [engine.submit(Request(prompt_ids=text(at, 100), max_tokens=50)) for at in range(3)]
    engine.step()
    assert engine.stats.blocks_used == 12
    engine.cancel(ids[1])
    assert engine.stats.blocks_used == 8
    for id in ids:
        engine.cancel(id)
    assert engine.stats.blocks_used == 0
    assert not engine.has_work


def test_what_can_never_fit_is_refused(tokenizer: Tokenizer) -> None:
    engine, _ = engine_of(tokenizer, blocks=3)
    assert engine.max_tokens == 96
    with pytest.raises(RequestError, match="has 96 tokens; this model's maximum context length is 96 tokens"):
        engine.submit(Request(prompt_ids=text(0, 96)))
    (answer,) = engine.generate([Request(prompt_ids=text(0, 95), ignore_eos=True)])
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 1


def test_a_long_prompt_beside_one_that_generates_is_read_in_what_time_allows(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, runner = engine_of(tokenizer, blocks=200, prefill_tokens=512, stretch=1.5)
    now = 0.0

    def clock() -> float:
        nonlocal now
        # A step takes 4 ms and 0.1 ms for each token beyond the first; the clock is read before and after it.
        now += 0.002 + 0.00005 * (len(runner.batches[-1].tokens) - 1) if runner.batches else 0.0
        return now

    monkeypatch.setattr("liuyi.infer.engine.perf_counter", clock)
    speaker = engine.submit(Request(prompt_ids=[3], max_tokens=500, ignore_eos=True))
    for _ in range(10):
        engine.step()
    engine.submit(Request(prompt_ids=text(1, 2000), max_tokens=1))
    runner.batches.clear()
    while engine.running == 1 or len(runner.batches) < 60:
        assert any(update.id == speaker for update in engine.step())
    assert max(runner.read) <= 33
    assert 18 <= runner.read[40] <= 22
    engine.cancel(speaker)
    engine.step()
    assert runner.read[-1] == 512


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({}, {"tokens"}),
        ({"temperature": 0.5}, {"tokens"}),
        ({"logprobs": True}, {"logits"}),
        ({"prompt_logprobs": True}, {"logits"}),
        ({"temperature": 0.5, "top_p": 0.9}, {"logits"}),
        ({"logit_bias": {3: 0.5}}, {"logits"}),
    ],
)
def test_logits_are_asked_for_where_tokens_are_not_enough(
    tokenizer: Tokenizer, more: dict[str, Any], asked: set[str]
) -> None:
    runner = AskedRunner(blocks=20)
    engine = Engine(runner, tokenizer, prefill_tokens=40)
    prompt = text(1, 100)
    requests = [Request(prompt_ids=prompt, max_tokens=9, ignore_eos=True, seed=1, **kind) for kind in (more, {})]
    alone = engine.generate(requests[:1])
    assert runner.asked == asked
    beside = engine.generate(requests)
    assert alone[0].token_ids == beside[0].token_ids
    assert beside[1].token_ids == plain(prompt, 9)
