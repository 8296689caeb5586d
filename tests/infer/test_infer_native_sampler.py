"""The sampler in native code against the one in torch, which is written as the formulas are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from liuyi.infer.native_sampler import NativeSampler
from liuyi.infer.request import Request
from liuyi.infer.sampler import Sampler
from liuyi.kernels.draws import DRAW, SCORE
from liuyi.kernels.library import KernelsAbsent, KernelsError, Library, kernels
from liuyi.kernels.model import NativeModel, NativeShape

SLOTS = 6
MASSES = ("top_p", "typical_p")


@pytest.fixture(scope="module", params=["avx2", "amx"])
def native(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library without newer instructions, and with all that this processor has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIUYI_KERNELS", request.param)
        try:
            yield kernels()
        except KernelsAbsent as error:
            pytest.skip(str(error))


def samplers(native: Library, vocab: int, threads: int = 2) -> tuple[Sampler, NativeSampler]:
    shape = NativeShape(vocab, 64, 64, 1, 1, 1, 64, 1e-5)
    model = NativeModel(shape, windows=[0], blocks=1, threads=threads, library=native)
    return Sampler(SLOTS, vocab), NativeSampler(SLOTS, model)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    def either(nothing: float, some: st.SearchStrategy[Any]) -> Any:
        return draw(st.one_of(st.just(nothing), some))

    return {
        "temperature": either(0.0, st.sampled_from([0.3, 0.7, 1.0, 1.7])),
        "top_k": either(0, st.sampled_from([1, 2, 7, 50, 900, 100_000])),
        "top_p": either(1.0, st.floats(0.02, 0.999)),
        "min_p": either(0.0, st.floats(0.001, 0.5)),
        "typical_p": either(1.0, st.floats(0.1, 0.99)),
        "repetition_penalty": either(1.0, st.floats(0.8, 1.6)),
        "presence_penalty": either(0.0, st.floats(-1, 2)),
        "frequency_penalty": either(0.0, st.floats(-1, 2)),
        "min_tokens": either(0, st.integers(1, 6)),
        "logit_bias": draw(st.dictionaries(st.integers(0, 30), st.floats(-9, 9), max_size=3)),
    }


class TestDraws:
    @given(
        st.lists(requests(), min_size=1, max_size=SLOTS),
        st.sampled_from([31, 64, 333, 3000, 20_011]),
        st.sampled_from([0.05, 1.0, 4.0, 30.0]),
        st.integers(0, 2**32),
    )
    @settings(deadline=None, max_examples=60)
    def test_are_those_of_torch(
        self, native: Library, asked: list[dict[str, Any]], vocab: int, scale: float, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        logits = torch.from_numpy(scale * random.standard_normal((SLOTS + 2, vocab)).astype(np.float32))
        logits[0, random.random(vocab) < 0.3] = -float("inf")
        rows = random.permutation(len(logits))[: len(asked)].tolist()
        masks = [
            random.integers(-(2**31), 2**31, (vocab + 31) // 32).astype(np.int32) if random.random() < 0.3 else None
            for _ in asked
        ]

        def drawn_by(sampler: Sampler, p_factor: float = 1.0) -> list[list[int]]:
            for slot, fields in enumerate(asked):
                moved = {name: min(1.0, p_factor * fields[name]) if fields[name] < 1 else 1.0 for name in MASSES}
                output = np.random.default_rng(slot).integers(0, vocab, 100).tolist()
                request = Request(prompt_ids=[1, 2, 30, 2], **{**fields, **moved})
                sampler.admit(slot, request, seed=seed + slot, stop_ids=range(slot, vocab, 3))
                sampler.observe(slot, output[:3])
                sampler.observe(slot, output[3:])
            slots = list(range(len(asked)))
            return [sampler.sample(logits, rows, slots, [at] * len(slots), masks) for at in range(6)]

        torchs, natives = samplers(native, vocab)
        expected, drawn = drawn_by(torchs), drawn_by(natives)
        if drawn != expected:
            # Sums are taken in another order, which may move what is left by one token where a mass is just reached.
            near = [np.array(drawn_by(torchs, factor)) for factor in (1 - 1e-5, 1.0, 1 + 1e-5)]
            assert np.any([np.array(drawn) == each for each in near], axis=0).all()

    def test_follow_the_distribution(self, native: Library) -> None:
        _, sampler = samplers(native, 40)
        probabilities = torch.full((40,), 1e-9)
        probabilities[[3, 17, 18, 31, 39]] = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
        sampler.admit(0, Request(prompt_ids=[1], temperature=1.0), seed=4)
        logits = probabilities.log()[None].repeat(1000, 1)
        drawn = []
        for at in range(0, 20_000, 1000):
            drawn += sampler.sample(logits, range(1000), [0] * 1000, list(range(at, at + 1000)), None)
        counts = np.bincount(drawn, minlength=40)[[3, 17, 18, 31, 39]]
        assert counts.sum() == 20_000
        assert stats.chisquare(counts, [10_000, 5_000, 3_000, 1_400, 600]).pvalue > 0.01

    def test_do_not_depend_on_company_or_threads(self, native: Library) -> None:
        logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))
        fields = {"temperature": 1.3, "top_p": 0.8, "frequency_penalty": 0.3}
        drawn = []
        for threads in (1, 3):
            _, sampler = samplers(native, 1000, threads)
            for slot in range(5):
                sampler.admit(slot, Request(prompt_ids=[slot], **fields), seed=slot)
            drawn.append(sampler.sample(logits, range(5), range(5), [9] * 5, None))
            drawn.append([sampler.sample(logits, [row], [row], [9], None)[0] for row in range(5)])
        assert all(tokens == drawn[0] for tokens in drawn)

    def test_of_equal_logits_the_first_is_the_likeliest(self, native: Library) -> None:
        _, sampler = samplers(native, 100)
        sampler.admit(0, Request(prompt_ids=[1], temperature=0), seed=0)
        logits = torch.zeros(1, 100)
        logits[0, [41, 77, 99]] = 2.0
        assert sampler.sample(logits, [0], [0], [0], None) == [41]

    def test_filters_keep_ties(self, native: Library) -> None:
        _, sampler = samplers(native, 64)
        logits = torch.zeros(1, 64)
        logits[0, :4] = 9.0
        for fields in ({"top_k": 2}, {"top_p": 0.3}):
            sampler.admit(0, Request(prompt_ids=[1], temperature=1.0, **fields), seed=0)
            drawn = {sampler.sample(logits, [0], [0], [at], None)[0] for at in range(100)}
            assert drawn == {0, 1, 2, 3}

    def test_logits_that_are_not_numbers_do_not_stop_the_others(self, native: Library) -> None:
        _, sampler = samplers(native, 50)
        for slot in range(4):
            sampler.admit(slot, Request(prompt_ids=[1], temperature=1.0, top_p=0.9), seed=slot)
        logits = torch.zeros(4, 50)
        logits[0] = float("nan")
        logits[1, 7] = float("inf")
        logits[2, :40] = float("nan")
        logits[3] = -float("inf")
        hopeless, infinite, some, none = sampler.sample(logits, range(4), range(4), [0] * 4, None)
        assert (hopeless, infinite, none) == (0, 7, 0)
        assert some >= 40

    def test_logits_of_another_vocabulary_are_drawn_in_torch(self, native: Library) -> None:
        torchs, sampler = samplers(native, 90)
        logits = torch.randn(2, 70)
        for each in (torchs, sampler):
            each.admit(0, Request(prompt_ids=[1], temperature=1.0), seed=3)
        assert sampler.sample(logits, [1], [0], [5], None) == torchs.sample(logits, [1], [0], [5], None)


class TestScores:
    @given(
        st.sampled_from([31, 333, 5000]), st.lists(st.integers(0, 25), min_size=1, max_size=5), st.integers(0, 2**32)
    )
    @settings(deadline=None, max_examples=30)
    def test_are_those_of_torch(self, native: Library, vocab: int, tops: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = 5 * torch.randn(7, vocab, generator=generator)
        rows, tokens = list(range(1, 1 + len(tops))), [int(vocab * 0.9) - i for i in range(len(tops))]
        exact, near = (sampler.score(logits, rows, tokens, tops) for sampler in samplers(native, vocab))
        for (logprob, best), (near_logprob, near_best) in zip(exact, near, strict=True):
            assert near_logprob == pytest.approx(logprob, abs=1e-5)
            assert [token for token, _ in near_best] == [token for token, _ in best]
            assert [value for _, value in near_best] == pytest.approx([value for _, value in best], abs=1e-5)

    def test_of_equal_ones_the_first_come_first_and_there_are_no_more_than_all(self, native: Library) -> None:
        _, sampler = samplers(native, 40)
        logits = torch.zeros(1, 40)
        logits[0, 11] = 1.0
        ((_, best),) = sampler.score(logits, [0], [5], [3])
        assert [token for token, _ in best] == [11, 0, 1]
        ((_, all_of_them),) = sampler.score(logits, [0], [5], [41])
        assert len({token for token, _ in all_of_them}) == 40

    def test_a_token_that_there_is_not_is_refused(self, native: Library) -> None:
        _, sampler = samplers(native, 40)
        with pytest.raises(KernelsError, match="vocabulary"):
            sampler.score(torch.zeros(1, 40), [0], [40], [0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seen": [7, 64], "seen_count": 2}, "not in the vocabulary"),
        ({"biased": [-1], "biased_count": 1}, "not in the vocabulary"),
        ({"seen_count": -1}, "not in the vocabulary"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_draws_that_would_read_elsewhere_or_never_end_are_refused(
    native: Library, changes: dict[str, Any], words: str
) -> None:
    logits, weights = np.zeros(64, np.float32), np.ones(2, np.float32)
    row = np.zeros(1, DRAW)
    for name, value in {"logits": logits, "counts": weights, "biases": weights, "repetition": 1.0, **changes}.items():
        kept = np.array(value, np.int32) if isinstance(value, list) else value
        changes[name] = kept  # lives as long as the row points to it
        row[name] = kept.ctypes.data if isinstance(kept, np.ndarray) else kept
    with pytest.raises(KernelsError, match=words):
        samplers(native, 64)[1]._model.draw(row)


def test_what_is_no_array_of_draws_is_refused(native: Library) -> None:
    _, sampler = samplers(native, 40)
    with pytest.raises(KernelsError, match="logits"):
        sampler._model.draw(np.zeros(1, SCORE))
    with pytest.raises(KernelsError, match="top_ids"):
        sampler._model.score(np.zeros(2, DRAW))
