"""Speculation changes the number of steps, and no answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from history_runner import HistoryRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from infer_support import VOCAB, let_drafts_cost, tiny_model
from scipy import stats

from liuyi.infer.engine import Engine
from liuyi.infer.pace import Pace
from liuyi.infer.request import Completion, Request
from liuyi.infer.runner import Batch, Runner
from liuyi.infer.sequence import Sequence as Running
from liuyi.infer.speculate.draft_model import DraftModel
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.infer.speculate.speculator import Choose, Speculator
from liuyi.infer.torch_runner import TorchRunner
from liuyi.infer.verify_cost import VerifyCost
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["HassTurnOn", "HassTurnOff"]}, "area": {"type": "string"}},
    "required": ["intent", "area"],
    "additionalProperties": False,
}
FEATURES: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.3, "seed": 2, "top_k": 20, "top_p": 0.9, "logprobs": True},
    {"temperature": 1.0, "seed": -7, "min_p": 0.05, "repetition_penalty": 1.2},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3, "ignore_eos": True},
    {"schema": SCHEMA},
    {"schema": SCHEMA, "temperature": 1.0, "seed": 4, "logprobs": True},
    {"stop": ["e", "灯"], "temperature": 0.9, "seed": 6},
    {"temperature": 0.3, "seed": 7, "ignore_eos": True, "prompt_logprobs": True},
    {"min_tokens": 12, "stop_token_ids": range(30, 90)},
    {"min_tokens": 12, "stop": ["e", "o"], "stop_token_ids": range(30, 90), "temperature": 0.9, "seed": 8},
]


class Oracle:
    """Drafts what is known to come, with a mistake now and then."""

    token_s = 0.0

    def __init__(self, known: dict[tuple[int, ...], Completion], every: int) -> None:
        self.known = known
        self.every = every
        self.asked = 0

    def offers(self, sequence: Running) -> int:
        return 6

    def guess(self, sequence: Running) -> int | None:
        return None

    def draft(self, wanted: Sequence[tuple[Running, int]], choose: Choose) -> list[list[int]]:
        drafts = []
        for sequence, length in wanted:
            at = sequence.generated
            draft = list(self.known[tuple(sequence.request.prompt_ids)].token_ids[at : at + length])
            for place in range(len(draft)):
                self.asked += 1
                if self.asked % self.every == 0:
                    draft[place] = (draft[place] + 1) % VOCAB
            drafts.append(draft)
        return drafts

    def forget(self, sequence: Running) -> None:
        pass


@pytest.fixture(autouse=True)
def cheap_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where a step's time is that of reading the weights."""

    let_drafts_cost(monkeypatch)


def requests(tokenizer: Tokenizer) -> list[Request]:
    words = ["turn", "on", "the", "kitchen", "lights", "打开厨房的灯", "quick", "brown", "fox"]
    cycle = itertools.cycle(words)
    return [
        Request(prompt_ids=tokenizer.encode(" ".join(itertools.islice(cycle, 2 + 2 * at))), max_tokens=40, **feature)
        for at, feature in enumerate(FEATURES)
    ]


def steps_and_answers(engine: Engine, asked: Sequence[Request]) -> tuple[int, list[Completion]]:
    ids = [engine.submit(request) for request in asked]
    done: dict[int, Completion] = {}
    parts: dict[int, list[int]] = {id: [] for id in ids}
    steps = 0
    while engine.has_work:
        for update in engine.step():
            parts[update.id] += update.token_ids
            if update.completion is not None:
                done[update.id] = update.completion
        steps += 1
    assert engine.stats.blocks_used == 0
    assert all(tuple(parts[id]) == done[id].token_ids for id in ids)
    return steps, [done[id] for id in ids]


def assert_same(some: Sequence[Completion], others: Sequence[Completion]) -> None:
    for one, other in zip(some, others, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=1e-4)
        assert [[token for token, _ in top] for top in one.top_logprobs] == [
            [token for token, _ in top] for top in other.top_logprobs
        ]


@pytest.mark.parametrize("every", [1, 3, 10**9])
def test_right_and_wrong_drafts_leave_every_answer_as_it_is(model: Decoder, tokenizer: Tokenizer, every: int) -> None:
    asked = requests(tokenizer)
    many, plain = steps_and_answers(Engine(model, tokenizer), asked)
    oracle = Oracle({tuple(r.prompt_ids): answer for r, answer in zip(asked, plain, strict=True)}, every)
    engine = Engine(model, tokenizer, drafter=oracle)
    few, speculated = steps_and_answers(engine, asked)
    assert_same(speculated, plain)
    drafted, accepted = engine.stats.drafted_tokens, engine.stats.accepted_tokens
    if every == 1:
        assert accepted == 0 < drafted
    else:
        assert few < many
        assert 0 < accepted <= drafted


def test_drafts_survive_preemption_and_little_room(tokenizer: Tokenizer) -> None:
    asked = [Request(prompt_ids=[at + 3] * 20, max_tokens=100, ignore_eos=True) for at in range(4)]
    runner = HistoryRunner(tiny_model().config, 400)
    plain = Engine(runner, tokenizer).generate(asked)
    oracle = Oracle({tuple(r.prompt_ids): answer for r, answer in zip(asked, plain, strict=True)}, 7)
    engine = Engine(HistoryRunner(runner.config, 6), tokenizer, max_slots=3, drafter=oracle)
    assert steps_and_answers(engine, asked)[1] == plain
    assert engine.stats.preemptions
    assert engine.stats.accepted_tokens


def running(id: int, tokens: list[int], limit: int = 1000) -> Running:
    return Running(id, Request(prompt_ids=tokens, max_tokens=500), seed=0, limit=limit, stop_ids=frozenset())


def test_lookup_finds_what_followed_the_same_tokens_before() -> None:
    lookup = PromptLookup(grams=(3, 2))

    def found(sequence: Running, length: int) -> list[int]:
        ((draft),) = lookup.draft([(sequence, length)], no_sample)
        assert bool(draft) == (lookup.offers(sequence) > 0)
        return draft

    def no_sample(*_: object) -> list[int]:
        raise AssertionError("lookup needs no model")

    sequence = running(0, [1, 2, 3, 4, 5, 9, 2, 3, 7, 7, 1, 2, 3])
    assert found(sequence, 4) == [4, 5, 9, 2]
    sequence.tokens += [8, 2, 3]
    # The latest occurrence of two tokens, since three were never seen; what repeats itself is taken to go on.
    assert found(sequence, 8) == [8, 2, 3, 8, 2, 3, 8, 2]
    sequence.tokens += [50]
    assert found(sequence, 3) == []
    assert found(running(1, [1]), 3) == []


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=4),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.integers(1, 6),
)
def test_no_other_lengths_give_more_tokens_in_a_time(
    drafts: list[tuple[float, int]], token_s: float, draft_s: float, stair: int
) -> None:
    """Against all choices of lengths, for costs that rise in stairs."""
    assume(any(room for _, room in drafts))
    pace = Pace(prefill_tokens=1)
    drafter = Oracle({}, 1)
    drafter.token_s = draft_s
    speculator = Speculator(drafter, pace)
    for id, (agreement, _) in enumerate(drafts):
        speculator._record(id).agreement = agreement

    def cost(self: VerifyCost, tokens: int) -> float:
        return token_s * -(-tokens // stair)

    def rate(lengths: Sequence[int]) -> float:
        expected = sum(sum(a**depth for depth in range(1, n + 1)) for (a, _), n in zip(drafts, lengths, strict=True))
        return (len(drafts) + expected) / (1 + cost(pace.verify_cost, sum(lengths)) + draft_s * max(lengths))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(VerifyCost, "seconds", cost)
        lengths = speculator._lengths({id: room for id, (_, room) in enumerate(drafts)}, len(drafts), 1.0)
    best = max(rate(each) for each in itertools.product(*(range(room + 1) for _, room in drafts)))
    assert rate([lengths.get(id, 0) for id in range(len(drafts))]) == pytest.approx(best)


def test_lookup_pays_where_the_output_repeats_itself(model: Decoder, tokenizer: Tokenizer) -> None:
    bias = {token: 100.0 for token in (40, 41)}
    asked = [Request(prompt_ids=[30 + at], max_tokens=120, logit_bias=bias) for at in range(4)]
    many, plain = steps_and_answers(Engine(model, tokenizer), asked)
    engine = Engine(model, tokenizer, drafter=PromptLookup())
    few, speculated = steps_and_answers(engine, asked)
    assert_same(speculated, plain)
    assert few < 0.8 * many


@pytest.mark.parametrize("draft_blocks", [200, 3])
def test_a_draft_model_changes_nothing(model: Decoder, tokenizer: Tokenizer, draft_blocks: int) -> None:
    asked = requests(tokenizer)
    plain = steps_and_answers(Engine(model, tokenizer), asked)[1]
    near = tiny_model()
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    engine = Engine(model, tokenizer, drafter=DraftModel(TorchRunner(near, draft_blocks)))
    assert_same(steps_and_answers(engine, asked)[1], plain)
    assert engine.stats.drafted_tokens or draft_blocks == 3


def test_short_drafts_are_made_beside_one_that_is_still_being_read(model: Decoder) -> None:
    def likeliest(runner: Runner, batch: Batch, sequences: Sequence[Running], ahead: int) -> list[int]:
        return [int(token) for token in runner.logits(batch).argmax(dim=-1)]

    drafter = DraftModel(TorchRunner(model, 100))
    short, long = drafter.draft([(running(0, [10] * 5), 2), (running(1, [*range(300)]), 5)], likeliest)
    assert (len(short), long) == (2, [])


def test_a_model_that_drafts_for_itself_is_right_at_any_temperature(model: Decoder, tokenizer: Tokenizer) -> None:
    asked = [
        Request(prompt_ids=[30 + at] * 50, max_tokens=60, temperature=at / 4, seed=at, ignore_eos=True)
        for at in range(6)
    ]
    many, plain = steps_and_answers(Engine(model, tokenizer), asked)
    engine = Engine(model, tokenizer, drafter=DraftModel(TorchRunner(model, 100)))
    few, speculated = steps_and_answers(engine, asked)
    assert_same(speculated, plain)
    assert engine.stats.accepted_tokens > 0.95 * engine.stats.drafted_tokens > 0
    assert few < many / 3


def test_drafts_grow_with_agreement_and_cease_where_they_cost_more_than_they_give(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request(prompt_ids=[30], max_tokens=200, ignore_eos=True)]
    plain = Engine(model, tokenizer).generate(asked)
    known = {tuple(asked[0].prompt_ids): plain[0]}

    def drafted(every: int, token_s: float) -> int:
        let_drafts_cost(monkeypatch, token_s)
        engine = Engine(model, tokenizer, drafter=Oracle(known, every))
        assert engine.generate(asked) == plain
        return engine.stats.drafted_tokens

    right, wrong = drafted(10**9, 0.05), drafted(1, 0.05)
    assert right > 150
    assert wrong < 80
    assert drafted(10**9, 2.0) < 20


class Guesser(Oracle):
    """Drafts always the same token, as it says if it is asked."""

    def __init__(self, knows: bool) -> None:
        super().__init__({}, 1)
        self.knows = knows

    def guess(self, sequence: Running) -> int | None:
        return 7 if self.knows else None

    def draft(self, wanted: Sequence[tuple[Running, int]], choose: Choose) -> list[list[int]]:
        return [[7] * length for _, length in wanted]


class Steps:
    """A sequence that generates what its drafter says, or not; each drafted token costs half of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, knows: bool) -> None:
        let_drafts_cost(monkeypatch, 0.5)
        self.speculator = Speculator(Guesser(knows), Pace(prefill_tokens=1))
        self.sequence = running(0, [1, 2, 3], limit=10_000)

    def drafted(self, steps: int, *, right: bool) -> list[int]:
        """How many tokens were drafted for each of so many steps."""

        def no_sample(*_: object) -> list[int]:
            raise AssertionError("this needs no model")

        counts = []
        for _ in range(steps):
            drafts = self.speculator.draft([self.sequence], no_sample).get(0, [])
            if drafts:
                self.speculator.learn(self.sequence, len(drafts), len(drafts) if right else 0)
            self.sequence.tokens.append(7 if right else 8)
            counts.append(len(drafts))
        return counts


def test_what_was_guessed_and_not_drafted_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, knows=True)
    assert sum(steps.drafted(1000, right=False)) == 0
    then = steps.drafted(30, right=True)
    assert not any(then[:5])
    assert all(then[15:])
    assert not any(steps.drafted(30, right=False)[20:])


def test_what_has_to_be_drafted_to_be_judged_is_tried_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, knows=False)
    tried = np.flatnonzero(steps.drafted(1200, right=False))
    assert np.diff(tried).tolist() == [32, 64, 128, 256, 256, 256]
    # Until it is right.
    then = np.flatnonzero(steps.drafted(500, right=True))
    assert then[0] <= 256
    assert then[1] - then[0] == 16
    assert len(then) > 100


def test_speculated_output_follows_the_models_distribution(model: Decoder, tokenizer: Tokenizer) -> None:
    """Pairs of tokens, drafted by a model that is often wrong, against their exact probabilities."""
    prompt, count, width = [50, 60, 70], 1500, 4
    draft = TorchRunner(tiny_model(seed=9), 400)
    engine = Engine(model, tokenizer, max_slots=64, drafter=DraftModel(draft))
    bias = {token: 30.0 for token in range(40, 40 + width)}
    answers = engine.generate(
        [
            Request(prompt_ids=prompt, max_tokens=4, temperature=1.5, seed=at, logit_bias=bias, ignore_eos=True)
            for at in range(count)
        ]
    )
    assert 0 < engine.stats.accepted_tokens < engine.stats.drafted_tokens
    seen = np.zeros((width, width))
    for answer in answers:
        seen[answer.token_ids[2] - 40, answer.token_ids[3] - 40] += 1

    def after(tokens: list[int]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            logits = model.logits(model(torch.tensor([tokens])))[0, -1, 40 : 40 + width]
        return (logits.double() / 1.5).softmax(0).numpy()

    expected = np.zeros((width, width))
    for first, second in itertools.product(range(width), repeat=2):
        path = [*prompt, 40 + first, 40 + second]
        chance = after(prompt)[first] * after(path[:-1])[second]
        for third in range(width):
            expected[third] += chance * after(path)[third] * after([*path, 40 + third])
    assert stats.chisquare(seen.ravel(), count * expected.ravel()).pvalue > 0.001
