"""Each sampling method against its formula, and draws against the distribution they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from liuyi.infer.request import Request
from liuyi.infer.sampler import Sampler, _filtered
from liuyi.infer.sampling import (
    derive_seed,
    draw,
    draw_reference,
    gumbel_noise,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    noise_keys,
    penalise,
    score,
    unpack_mask,
)
from liuyi.infer.seen import Seen

rows_of_logits = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5), min_size=1, max_size=4).map(
    torch.tensor
)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return noise_keys(np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64))


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


class TestPenalties:
    def test_follow_the_formulas(self) -> None:
        # The first token is in the prompt only, the second came twice, the third once.
        logits, counts = torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
        result = penalise(logits, counts, repetition=2, presence=0.5, frequency=0.25)
        assert result.tolist() == pytest.approx([2.0 / 2, -2.0 * 2 - 0.5 - 2 * 0.25, 1.0 / 2 - 0.5 - 0.25])

    def test_repetition_is_that_of_transformers(self) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 4
        prompt, output = [3, 9, 3, 41], [9, 9, 7, 3]
        ours = Sampler(slots=1, vocab_size=50)
        ours.admit(0, Request(prompt_ids=prompt, temperature=0, repetition_penalty=1.3), seed=0)
        ours.observe(0, output)
        theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + output]), logits.clone())
        kept = ours._changed(logits, [0], [ours._request(0)], [None])
        torch.testing.assert_close(kept, theirs)

    def test_what_ends_too_soon_is_what_transformers_takes_out(self) -> None:
        from transformers import MinNewTokensLengthLogitsProcessor

        logits, ends = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)), [3, 31, 32, 49]
        ours = Sampler(slots=1, vocab_size=50)
        ours.admit(0, Request(prompt_ids=[7, 8], min_tokens=4, logit_bias={31: 90.0}), seed=0, stop_ids=ends)
        theirs = MinNewTokensLengthLogitsProcessor(2, 4, eos_token_id=ends, device="cpu")
        logits[0, 31] += 90
        for position in range(7):
            expected = theirs(torch.tensor([[7, 8] + [9] * position]), logits.clone())
            assert ours.sample(logits, [0], [0], [position], None) == [int(expected.argmax())]
            assert ours.is_plain(0, position) is False

    @given(st.lists(st.integers(0, 300)), st.lists(st.integers(0, 300), max_size=200))
    def test_what_is_seen_is_counted(self, prompt: list[int], output: list[int]) -> None:
        seen = Seen(prompt)
        for token in output:
            seen.add([token])
        found = dict(zip(seen.tokens.tolist(), seen.counts.tolist(), strict=True))
        assert found == {token: output.count(token) for token in {*prompt, *output}}


@pytest.mark.parametrize("seed", range(40))
def test_all_together_are_those_of_transformers_in_its_order(seed: int) -> None:
    import transformers

    chance, vocab = np.random.default_rng(seed), 400
    prompt, output = chance.integers(0, vocab, 20).tolist(), chance.integers(0, vocab, 5).tolist()
    bias = {token: float(chance.normal() * 4) for token in [*prompt[:2], *output[:1], 17]}
    repetition, temperature = float(chance.choice([0.8, 1.3])), float(chance.choice([0.4, 1.0, 1.8]))
    top_k, top_p = int(chance.choice([0, 30])), float(chance.choice([1.0, 0.8]))
    min_p, typical_p = float(chance.choice([0.0, 0.05])), float(chance.choice([1.0, 0.7]))
    theirs = transformers.LogitsProcessorList(
        [
            transformers.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}),
            transformers.RepetitionPenaltyLogitsProcessor(repetition),
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(top_k or vocab),
            transformers.TopPLogitsWarper(top_p),
            transformers.MinPLogitsWarper(min_p),
            *([transformers.TypicalLogitsWarper(typical_p)] if typical_p < 1 else []),
        ]
    )
    logits = torch.from_numpy(chance.normal(size=(1, vocab)).astype(np.float32) * 3)
    request = Request(
        prompt_ids=prompt,
        logit_bias=bias,
        repetition_penalty=repetition,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
    )
    sampler = Sampler(slots=1, vocab_size=vocab)
    sampler.admit(0, request, seed=0)
    sampler.observe(0, output)
    ours = _filtered(sampler._changed(logits, [0], [request], [None]), [request])
    expected = theirs(torch.tensor([prompt + output]), logits.clone())
    both = ours.isfinite() & expected.isfinite()
    # Where a mass is just reached, rounding may leave a token more or less.
    assert (ours.isfinite() != expected.isfinite()).sum() <= 1
    torch.testing.assert_close(ours[both], expected[both])


class TestFilters:
    @given(rows_of_logits, st.integers(0, 6))
    @settings(deadline=None, max_examples=60)
    def test_top_k_keeps_the_k_largest(self, logits: torch.Tensor, k: int) -> None:
        result = kept(keep_top_k(logits, torch.full((len(logits),), k)))
        for row, ids in zip(logits.tolist(), result, strict=True):
            threshold = sorted(row, reverse=True)[k - 1] if 0 < k < 5 else -float("inf")
            assert ids == {token for token, value in enumerate(row) if value >= threshold}

    def test_top_k_takes_another_k_for_each_row(self) -> None:
        logits = torch.tensor([[1.0, 2.0, 3.0]] * 3)
        assert kept(keep_top_k(logits, torch.tensor([1, 0, 2]))) == [{2}, {0, 1, 2}, {1, 2}]

    @given(rows_of_logits, st.floats(0.01, 1.0))
    @settings(deadline=None, max_examples=60)
    def test_top_p_keeps_the_smallest_set_that_reaches_p(self, logits: torch.Tensor, p: float) -> None:
        result = kept(keep_top_p(logits, torch.full((len(logits),), p)))
        for row, ids in zip(logits.double(), result, strict=True):
            probabilities = row.softmax(0)
            inside = float(probabilities[list(ids)].sum())
            assert inside >= p - 1e-5
            least = float(row[list(ids)].min())
            assert ids == set((row >= least).nonzero().flatten().tolist())
            without = float(probabilities[row > least].sum())
            assert p == 1.0 or without < p + 1e-5

    def test_top_p_is_that_of_transformers_in_large_vocabularies(self) -> None:
        from transformers import TopPLogitsWarper

        torch.manual_seed(1)
        # The first row is peaked, the second so flat that the mass is far beyond the head that is looked at first.
        logits = torch.randn(2, 3000) * torch.tensor([[6.0], [0.1]])
        for p in (0.3, 0.9, 0.999):
            ours = keep_top_p(logits, torch.full((2,), p)).isfinite()
            theirs = TopPLogitsWarper(p)(None, logits.clone()).isfinite()
            assert (ours != theirs).sum() <= 1

    @given(rows_of_logits, st.floats(0.001, 1.0))
    @settings(deadline=None, max_examples=60)
    def test_min_p_keeps_what_is_probable_enough(self, logits: torch.Tensor, p: float) -> None:
        result = kept(keep_min_p(logits, torch.full((len(logits),), p)))
        for row, ids in zip(logits.double(), result, strict=True):
            ratio = (row - row.max()).exp()
            surely = set((ratio > p * (1 + 1e-5)).nonzero().flatten().tolist())
            perhaps = set((ratio > p * (1 - 1e-5)).nonzero().flatten().tolist())
            assert surely <= ids <= perhaps | {int(row.argmax())}

    @pytest.mark.parametrize("value", [0.05, 0.2, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize(
        ("ours", "theirs", "argument"),
        [
            (keep_top_k, "TopKLogitsWarper", lambda value: max(1, int(value * 300))),
            (keep_top_p, "TopPLogitsWarper", float),
            (keep_min_p, "MinPLogitsWarper", float),
            (keep_typical, "TypicalLogitsWarper", float),
        ],
    )
    def test_each_filter_is_that_of_transformers(
        self, ours: Any, theirs: str, argument: Callable[[float], float], value: float
    ) -> None:
        import transformers

        torch.manual_seed(3)
        # Peaked and flat rows, and one in which an earlier filter has left seven tokens.
        logits = torch.randn(4, 3000) * torch.tensor([[8.0], [3.0], [0.5], [2.0]])
        logits[3, 7:] = -float("inf")
        parameter = argument(value)
        expected = getattr(transformers, theirs)(parameter)(None, logits.clone())
        result = ours(logits, torch.full((4,), parameter))
        assert (result.isfinite() != expected.isfinite()).sum(dim=1).max() <= 1
        both = result.isfinite() & expected.isfinite()
        torch.testing.assert_close(result[both], expected[both])

    @given(rows_of_logits, st.floats(0.01, 1.0))
    @settings(deadline=None, max_examples=60)
    def test_typical_keeps_the_mass_and_nothing_less_typical(self, logits: torch.Tensor, p: float) -> None:
        result = kept(keep_typical(logits, torch.full((len(logits),), p)))
        for row, ids in zip(logits.double(), result, strict=True):
            logprobs = row.log_softmax(0)
            assert float(logprobs.exp()[list(ids)].sum()) >= p - 1e-4
            strangeness = (-logprobs + (logprobs.exp() * logprobs).sum()).abs()
            outside = [token for token in range(len(row)) if token not in ids]
            assert not outside or strangeness[list(ids)].max() <= strangeness[outside].min() + 1e-3


class TestDraws:
    def test_noise_is_standard_gumbel(self) -> None:
        noise = gumbel_noise(keys(400), 500).flatten()
        assert np.isfinite(noise).all()
        assert stats.kstest(noise[::7], stats.gumbel_r.cdf).pvalue > 0.01

    def test_noise_of_different_seeds_positions_and_tokens_is_unrelated(self) -> None:
        by_position = gumbel_noise(keys(3000), 2)
        by_seed = gumbel_noise(noise_keys(np.arange(3000, dtype=np.uint64), np.zeros(3000, dtype=np.uint64)), 2)
        assert abs(stats.spearmanr(by_position[1:, 0], by_position[:-1, 0]).statistic) < 0.06
        assert abs(stats.spearmanr(by_position[:, 0], by_position[:, 1]).statistic) < 0.06
        assert abs(stats.spearmanr(by_seed[1:, 0], by_seed[:-1, 0]).statistic) < 0.06
        assert abs(stats.spearmanr(by_seed[:, 0], by_position[:, 0]).statistic) < 0.06

    def test_draws_follow_the_distribution(self) -> None:
        probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
        drawn = draw(probabilities.log().repeat(20_000, 1), keys(20_000, seed=5))
        counts = np.bincount(drawn, minlength=5)
        assert stats.chisquare(counts, probabilities.numpy() * 20_000).pvalue > 0.01

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        logits, chosen = torch.randn(40, 300), keys(40)
        together = draw(logits, chosen)
        assert together == [draw(logits[row : row + 1], chosen[row : row + 1])[0] for row in range(40)]

    @pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 5.0, 40.0])
    def test_the_race_is_won_by_what_the_formula_says(self, scale: float) -> None:
        logits = scale * torch.randn(400, 700, generator=torch.Generator().manual_seed(8))
        logits[:, ::5] = -float("inf")
        assert draw(logits, keys(400, seed=9)) == draw_reference(logits, keys(400, seed=9))

    def test_forbidden_tokens_are_never_drawn(self) -> None:
        logits = torch.zeros(500, 4)
        logits[:, 2] = -float("inf")
        assert set(draw(logits, keys(500))) == {0, 1, 3}

    def test_a_row_without_hope_gives_some_token(self) -> None:
        assert list(draw(torch.full((2, 5), -float("inf")), keys(2))) == [0, 0]

    @pytest.mark.parametrize("temperature", [5e-324, 1e-30, 9e-5])
    def test_hardly_any_temperature_is_none(self, temperature: float) -> None:
        sampler, logits = Sampler(slots=1, vocab_size=50), torch.randn(1, 50) * 100
        sampler.admit(0, Request(prompt_ids=[1], temperature=temperature, top_p=0.9, min_p=0.1, typical_p=0.9), seed=1)
        assert sampler.sample(logits, [0], slots=[0], positions=[0], masks=None) == [int(logits.argmax())]

    def test_logits_that_are_not_numbers_do_not_stop_the_others(self) -> None:
        logits = torch.zeros(3, 50)
        logits[0] = float("nan")
        logits[1, 7] = float("inf")
        logits[2, :40] = float("nan")
        _, infinite, some = draw(logits, keys(3))
        assert infinite == 7
        assert some >= 40

    def test_derived_seeds_differ(self) -> None:
        assert len({derive_seed(seed, number) for seed in (-1, 0, 1, 2**63) for number in range(100)}) == 400


class TestScores:
    def test_are_log_softmax(self) -> None:
        torch.manual_seed(2)
        logits = torch.randn(3, 20) * 5
        expected = logits.double().log_softmax(-1)
        scores = score(logits, [4, 0, 19], [0, 3, 20])
        for row, (token, top) in enumerate(((4, 0), (0, 3), (19, 20))):
            logprob, best = scores[row]
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
            order = expected[row].argsort(descending=True)[:top].tolist()
            assert [id for id, _ in best] == order
            assert [value for _, value in best] == pytest.approx(expected[row, order].tolist(), abs=1e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_masks_unpack_bit_by_bit(allowed: list[bool]) -> None:
    words = np.zeros((1, (len(allowed) + 31) // 32), dtype=np.uint32)
    for token, value in enumerate(allowed):
        words[0, token // 32] |= np.uint32(value << (token % 32))
    assert unpack_mask(words.view(np.int32), len(allowed))[0].tolist() == allowed
