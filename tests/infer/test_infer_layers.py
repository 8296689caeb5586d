"""Pieces of prompts that go through a few layers a step: the same answers to the bit, and nothing left behind.

The clock is a random one, so that steps are given any time to read in; what is asked comes, goes and is preempted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from history_runner import HistoryRunner, logits_after
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from infer_support import VOCAB, random_adapter, tiny_model
from torch import Tensor

from liuyi.infer.embed import Embedder
from liuyi.infer.engine import Engine
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.request import Completion, Request
from liuyi.infer.runner import Batch, Draws, Layers, Runner, ids
from liuyi.infer.sampling import choose
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.kernels.library import KernelsAbsent, KernelsError, instruction_set_number, kernels
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

LENGTH, LAYERS = 300, 5
"""More than one span of 256 keys."""
CONFIG = tiny_model(max_position_embeddings=4096).config


def best() -> str:
    try:
        return kernels().instruction_set
    except KernelsAbsent as absent:
        pytest.skip(f"no native kernels: {absent.message}")


def layered_model() -> Decoder:
    """Two of its layers have a window."""
    windows = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    changes: dict[str, Any] = {"family": "qwen2", "attention_bias": True, "sliding_window": 40}
    return tiny_model(num_hidden_layers=LAYERS, layer_types=tuple(windows), max_position_embeddings=1024, **changes)


class Texts:
    """Texts in a native runner, all read once, and what each gave."""

    def __init__(self, kv: str, *, threads: int, adapters: list[int]) -> None:
        model = layered_model()
        blocks = -(-LENGTH // 32)
        self.tables = ids(range(4 * blocks)).reshape(4, blocks)
        self.tokens = torch.randint(300, (4, LENGTH), generator=torch.Generator().manual_seed(2)).numpy()
        self.adapters = adapters
        self.runner = NativeRunner(model, self.tables.size, weights="int8", kv=kv, threads=threads)
        for slot, rank in ((0, 4), (1, 7)):
            self.runner.load_adapter(slot, random_adapter(model, rank, slot))
        self.hidden_size = model.config.hidden_size
        self.whole = [self.read([text], [0], [LENGTH]) for text in range(4)]

    def read(self, texts: list[int], begins: list[int], counts: list[int], layers: Layers | None = None) -> Tensor:
        """Logits after all tokens, but those of a last text that does not reach the last layer."""
        parts = [self.tokens[text, at : at + count] for text, at, count in zip(texts, begins, counts, strict=True)]
        ends = layers is None or layers.end == LAYERS
        batch = Batch(
            tokens=ids(np.concatenate(parts)),
            counts=ids(counts),
            lengths=ids(begins),
            tables=ids(self.tables[texts]),
            rows=ids(range(sum(counts) if ends else sum(counts[:-1]))),
            adapters=ids([self.adapters[text] for text in texts]),
            layers=layers,
        )
        found = self.runner.logits(batch)
        if ends:
            # Once more: the last layers leave the residual stream as it was.
            temperatures = np.arange(len(found), dtype=np.float32) % 3
            draws = Draws(temperatures, np.arange(len(found), dtype=np.uint64))
            assert self.runner.choose(batch, draws).tolist() == choose(found, draws).tolist()
        return found


def read_by_layers(texts: Texts, chance: random.Random) -> None:
    """Read the last text anew in pieces, each a few layers at a time, beside tokens of the others."""
    position = 0
    while position < LENGTH:
        count = min(chance.choice([1, 5, 32, 64, 130]), LENGTH - position)
        residual = np.empty((count, texts.hidden_size), np.float32)
        done = 0
        while done < LAYERS:
            end = chance.randint(done + 1, LAYERS)
            beside = sorted(chance.sample(range(3), chance.randint(0, 3)))
            # Not the first of a block, which clears it.
            begins = [32 * chance.randrange(LENGTH // 32) + chance.randint(1, 24) for _ in beside]
            counts = [chance.choice([1, 1, 1, 7]) for _ in beside]
            layers = Layers(done, end, residual)
            found = texts.read([*beside, 3], [*begins, position], [*counts, count], layers)
            wanted = [texts.whole[text][at : at + some] for text, at, some in zip(beside, begins, counts, strict=True)]
            if end == LAYERS:
                wanted.append(texts.whole[3][position : position + count])
            assert torch.equal(found, torch.cat([*wanted, torch.empty(0, VOCAB)]))
            # What else the runner is asked in between does not matter.
            assert torch.equal(texts.read([0], [40], [3]), texts.whole[0][40:43])
            done = end
        position += count


@pytest.mark.parametrize("adapters", [[-1, -1, -1, -1], [-1, 1, 0, 1]], ids=["no adapters", "adapters"])
@pytest.mark.parametrize(("instruction_set", "kv"), [("avx2", "int8"), ("avx512", "bf16"), ("amx", "int8")])
def test_a_text_that_is_read_by_layers_beside_others_changes_no_bit(
    instruction_set: str, kv: str, adapters: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if instruction_set_number(instruction_set) > instruction_set_number(best()):
        pytest.skip(f"this processor has no {instruction_set}")
    monkeypatch.setenv("LIUYI_KERNELS", instruction_set)
    for threads in (1, 3):
        texts = Texts(kv, threads=threads, adapters=adapters)
        for seed in range(3):
            read_by_layers(texts, random.Random(seed))


def test_layers_that_there_are_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    best()
    texts = Texts("int8", threads=1, adapters=[-1] * 4)
    residual = np.zeros((8, texts.hidden_size), np.float32)
    for layers, words in (
        (Layers(2, 2, residual), "no such layers"),
        (Layers(-1, 2, residual), "no such layers"),
        (Layers(0, LAYERS + 1, residual), "no such layers"),
        (Layers(0, 2, residual[:7]), "for 8 tokens"),
        (Layers(0, 2, residual.astype(np.float64)), "float32"),
    ):
        with pytest.raises(KernelsError, match=words):
            texts.read([0, 1], [0, 0], [1, 8], layers)
    batch = Batch(ids([1] * 8), ids([8]), ids([0]), texts.tables[:1], ids([7]), ids([-1]), Layers(0, 2, residual))
    with pytest.raises(KernelsError, match="does not reach the last layer"):
        texts.runner.logits(batch)
    assert torch.equal(texts.read([0], [0], [LENGTH]), texts.whole[0])


class RandomClock:
    """Steps that take any time from 1 to 20 ms."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._chance.choice([0.001, 0.002, 0.005, 0.02])
        return self._now


@pytest.fixture
def clocked() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def plain(prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Greedy output of the history model."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits_after(text, VOCAB).argmax()))
    return tuple(text[len(prompt) :])


STEMS = [tuple(random.Random(seed).choices(range(VOCAB), k=230)) for seed in range(2)]
ASKED = st.builds(
    lambda stem, shared, own, tokens, priority, scored: Request(
        prompt_ids=(*STEMS[stem][:shared], *own), max_tokens=tokens, ignore_eos=True, priority=priority,
        prompt_logprobs=scored,
    ),
    st.integers(0, 1),
    st.integers(1, 230),
    st.lists(st.integers(0, VOCAB - 1), max_size=20),
    st.integers(1, 25),
    st.integers(-1, 1),
    st.booleans(),
)  # fmt: skip
EVENTS = st.lists(st.one_of(ASKED, st.integers(1, 12), st.just("cancel"), st.just("forget")), min_size=5, max_size=25)


@given(events=EVENTS, seed=st.integers(0, 1000), stretch=st.sampled_from([1.0, 1.2, 2.0, 5.0]))
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_cancelled_and_preempted_every_answer_is_right(
    clocked: pytest.MonkeyPatch, tokenizer: Tokenizer, events: list[Any], seed: int, stretch: float
) -> None:
    clocked.setattr("liuyi.infer.engine.perf_counter", RandomClock(seed))
    runner = HistoryRunner(CONFIG, 18, stops=6)
    engine = Engine(runner, tokenizer, max_slots=4, prefill_tokens=100, stretch=stretch)
    asked: dict[int, Request] = {}
    done: dict[int, Completion] = {}

    def steps(count: int) -> None:
        for _ in range(count):
            done.update({update.id: update.completion for update in engine.step() if update.completion})

    for event in events:
        if isinstance(event, Request):
            asked[engine.submit(event)] = event
        elif event == "cancel" and asked:
            engine.cancel(max(asked))
        elif event == "forget":
            engine.forget()
        elif isinstance(event, int):
            steps(event)
    while engine.has_work:
        steps(1)
    assert (engine.stats.blocks_used, engine.running, engine.waiting) == (0, 0, 0)
    for id, answer in done.items():
        prompt = tuple(asked[id].prompt_ids)
        assert answer.token_ids == plain(prompt, asked[id].max_tokens)
        if asked[id].prompt_logprobs:
            expected = [
                logits_after(list(prompt[:at]), VOCAB).log_softmax(0)[prompt[at]] for at in range(1, len(prompt))
            ]
            assert answer.prompt_logprobs == pytest.approx([float(each) for each in expected], abs=1e-4)


def busy(engine: Engine, prompt: list[int]) -> int:
    """One that speaks, and a prompt of which some layers have been read, its id."""
    engine.submit(Request(prompt_ids=[3], max_tokens=3000, ignore_eos=True))
    for _ in range(10):
        engine.step()
    id = engine.submit(Request(prompt_ids=prompt, max_tokens=2, ignore_eos=True))
    for _ in range(60):
        engine.step()
    return id


def long_prompt() -> list[int]:
    return random.Random(7).choices(range(VOCAB), k=2000)


@pytest.fixture
def even_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 4 ms, and 0.1 ms more for each token through all of six layers."""
    now, runners = 0.0, []
    logits = HistoryRunner.logits

    def kept(self: HistoryRunner, batch: Batch) -> Tensor:
        runners[:] = [self]
        return logits(self, batch)

    def clock() -> float:
        nonlocal now
        if runners and runners[0].batches:
            batch = runners[0].batches[-1]
            layers = batch.layers
            share = 1.0 if layers is None else (layers.end - layers.begin) / 6
            now += 0.002 + 0.00005 * (len(batch.tokens) - 1) * share
        return now

    monkeypatch.setattr(HistoryRunner, "logits", kept)
    monkeypatch.setattr("liuyi.infer.engine.perf_counter", clock)


def test_a_long_prompt_goes_through_some_layers_a_step(tokenizer: Tokenizer, even_clock: None) -> None:
    runner = HistoryRunner(CONFIG, 200, stops=6)
    engine = Engine(runner, tokenizer, stretch=1.5)
    prompt = long_prompt()
    id = busy(engine, prompt)
    parts = [batch.layers for batch in runner.batches if batch.layers is not None]
    assert all(layers.end - layers.begin < 6 for layers in parts)
    assert {len(layers.residual) for layers in parts} <= set(range(58, 129))
    done = {}
    while id not in done:
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    assert done[id].token_ids == plain(tuple(prompt), 2)


def test_a_piece_that_is_held_is_let_go_with_its_request(tokenizer: Tokenizer, even_clock: None) -> None:
    runner = HistoryRunner(CONFIG, 200, stops=6)
    engine = Engine(runner, tokenizer, stretch=1.2)
    id = busy(engine, long_prompt())
    while (layers := runner.batches[-1].layers) is None or layers.end == 6:
        engine.step()
    used = engine.stats.blocks_used
    engine.cancel(id)
    assert engine.stats.blocks_used <= 4 < used
    # Another's prompt with the same beginning takes over what was read whole, and nothing else.
    again = engine.submit(Request(prompt_ids=long_prompt(), max_tokens=2, ignore_eos=True))
    done: dict[int, Completion] = {}
    while again not in done:
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    assert 0 < engine.stats.hit_tokens < 2000
    assert done[again].token_ids == plain(tuple(long_prompt()), 2)


def test_those_that_begin_alike_wait_for_a_piece_that_is_held(tokenizer: Tokenizer, even_clock: None) -> None:
    runner = HistoryRunner(CONFIG, 400, stops=6)
    engine = Engine(runner, tokenizer, stretch=1.2)
    first = busy(engine, long_prompt())
    second = engine.submit(Request(prompt_ids=[*long_prompt(), 5], max_tokens=2, ignore_eos=True))
    done: dict[int, Completion] = {}
    while second not in done:
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    assert done[first].token_ids == plain(tuple(long_prompt()), 2)
    assert done[second].token_ids == plain((*long_prompt(), 5), 2)
    assert engine.stats.hit_tokens >= 1984 - 64
    assert engine.stats.hit_tokens % 32 == 0


def native_engine(model: Decoder, tokenizer: Tokenizer, **options: Any) -> Engine:
    runner: Runner = NativeRunner(model, 100, weights="int8", kv="int8", threads=1)
    engine = Engine(runner, tokenizer, max_slots=5, **options)
    engine.adapters.load("tuned", random_adapter(model, 4, 1))
    return engine


def requests() -> list[Request]:
    chance = random.Random(5)
    stem = chance.choices(range(30, VOCAB), k=200)
    each = [
        Request(
            prompt_ids=[*stem[: 60 * at], *chance.choices(range(30, VOCAB), k=1 + 70 * at)],
            max_tokens=20 if at else 150,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=2,
            prompt_logprobs=at == 2,
            temperature=0.0 if at % 2 else 0.9,
            seed=at,
        )
        for at in range(4)
    ]
    return [*each, replace(each[3], adapter="tuned")]


@pytest.mark.parametrize(("seed", "speculated"), [(0, False), (1, False), (2, True)])
def test_any_stretch_of_any_clock_gives_the_same_log_probabilities(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, seed: int, speculated: bool
) -> None:
    best()
    model, asked = layered_model(), requests()
    alone = [native_engine(model, tokenizer).generate([request])[0] for request in asked]
    monkeypatch.setattr("liuyi.infer.engine.perf_counter", RandomClock(seed))
    drafter = PromptLookup(grams=(1,)) if speculated else None
    engine = native_engine(model, tokenizer, stretch=1.0 + seed / 5, drafter=drafter)
    parts = _count_parts(engine.runner, monkeypatch)
    embedder = Embedder(engine.runner, engine.pool, chunk_tokens=16)
    embedder.add(1, [list(asked[2].prompt_ids)])
    ids_of: list[int] = []
    done: dict[int, Completion] = {}
    vectors: list[Any] = []
    for request in asked:
        ids_of.append(engine.submit(request))
        for _ in range(25):
            done |= {update.id: update.completion for update in engine.step() if update.completion}
            vectors += [found for _, found in embedder.step()]
    while engine.has_work:
        done |= {update.id: update.completion for update in engine.step() if update.completion}
    assert parts
    assert [done[id] for id in ids_of] == alone
    embedder.add(2, [list(asked[2].prompt_ids)])
    while not (found := embedder.step()):
        pass
    assert np.array_equal(vectors[0][0], found[0][1][0])


def _count_parts(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[Layers]:
    """Grows by what each later batch reads in part."""
    parts: list[Layers] = []
    logits = runner.logits

    def counted(batch: Batch) -> Tensor:
        parts.extend([batch.layers] if batch.layers is not None else [])
        return logits(batch)

    monkeypatch.setattr(runner, "logits", counted)
    return parts
