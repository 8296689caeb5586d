"""The search for a mixture: regression against its definition, and a search whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pretrain_support import GARDEN, TINY, sentences, shuffled, small_tokenizer, tokens_of

import in_process
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.evaluate.report import build_report, page
from liuyi.pretrain.ablate import regmix, workers
from liuyi.pretrain.ablate.mixtures import Source, bounded, drawn_shares, mixed_stream, sample_mixtures
from liuyi.pretrain.ablate.proxies import Measured, Plan
from liuyi.pretrain.ablate.regmix import Search
from liuyi.pretrain.ablate.regression import FEATURES, fit, fit_all, prediction_interval, propose


def known_loss(mixtures: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Least at 0.5, 0.3, 0.2, rising with the squared distance from there."""
    best = np.array([0.5, 0.3, 0.2])
    return 2.0 + ((mixtures - best) ** 2).sum(axis=1) + rng.normal(0, noise, len(mixtures))


def test_sampled_mixtures_surround_the_prior() -> None:
    prior = [0.6, 0.3, 0.1]
    mixtures = sample_mixtures(prior, 4000, np.random.default_rng(1))
    np.testing.assert_allclose(mixtures.sum(axis=1), 1)
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.mean(axis=0), prior, atol=0.02)
    assert mixtures[:, 0].std() > 0.1


def test_bounds_are_kept() -> None:
    mixtures = bounded(np.array([[0.8, 0.2], [0.1, 0.9]]), [100, 10_000], budget=1000, max_epochs=2)
    np.testing.assert_allclose(mixtures, [[0.2, 0.8], [0.1, 0.9]])


def test_a_regression_that_learnt_nothing_is_doubted() -> None:
    rng = np.random.default_rng(6)
    mixtures = sample_mixtures([1 / 3] * 3, 24, rng)

    def search(losses: np.ndarray) -> Search:
        return Search("abc", mixtures, losses, fit_all(mixtures, losses), mixtures[0], (1.0, 2.0))

    assert "the proposal is a guess" in search(rng.normal(2, 0.1, 24)).doubt
    assert not search(known_loss(mixtures, rng, 0.005)).doubt


@pytest.mark.parametrize("name", list(FEATURES))
def test_runs_left_out_are_predicted_as_if_they_had_not_been_there(name: str) -> None:
    """The closed form against fitting anew without each run; what it leaves is the scaling of the features."""
    rng = np.random.default_rng(2)
    mixtures = sample_mixtures([1 / 3] * 3, 40, rng)
    losses = known_loss(mixtures, rng, 0.01)
    whole = fit(name, 1e-3, mixtures, losses)
    alone = [
        fit(name, 1e-3, np.delete(mixtures, at, 0), np.delete(losses, at)).predict(mixtures[at][None])[0]
        for at in range(len(losses))
    ]
    np.testing.assert_allclose(whole.left_out, alone, atol=2e-3)
    assert whole.error == pytest.approx(np.sqrt(np.mean((losses - alone) ** 2)), rel=0.1)


def test_the_right_features_are_chosen_and_the_best_mixture_is_found() -> None:
    rng = np.random.default_rng(3)
    mixtures = sample_mixtures([1 / 3] * 3, 48, rng)
    losses = known_loss(mixtures, rng, 0.005)
    fits = fit_all(mixtures, losses)
    assert fits[0].name == "quadratic"
    assert fits[0].rank_correlation > 0.95
    proposal = propose(fits[0], sample_mixtures([1 / 3] * 3, 5000, rng))
    np.testing.assert_allclose(proposal, [0.5, 0.3, 0.2], atol=0.07)


def test_prediction_intervals_hold_new_runs() -> None:
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(50):
        mixtures = sample_mixtures([1 / 3] * 3, 40, rng)
        losses = known_loss(mixtures, rng, 0.02)
        chosen = fit("quadratic", 1e-4, mixtures, losses)
        fresh = sample_mixtures([1 / 3] * 3, 1, rng)
        low, high = prediction_interval(chosen, mixtures, losses, fresh[0], 0.9, rng)
        inside += low <= known_loss(fresh, rng, 0.02)[0] <= high
    assert inside / 50 > 0.75


class Desk:
    """Three sources: one that is like the held-out text, one that is another text, and garbage, of which most is."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.built, self.tokenizer = small_tokenizer(home)
        parts = {
            "good": sentences(60, seed=3),
            "garden": sentences(60, seed=4, words=GARDEN),
            "garbage": shuffled(sentences(180, seed=5), seed=6),
        }
        self.sources = [tokens_of(home, self.built, texts, name) for name, texts in parts.items()]
        self.heldout = tokens_of(home, self.built, sentences(40, seed=7), "held")

    def search(self, workdir: Path, **params: object):  # type: ignore[no-untyped-def]
        workdir.mkdir(exist_ok=True)
        inputs = {"sources": self.sources, "heldout": [self.heldout], "tokenizer": self.tokenizer}
        fixed = {**TINY, "labels": ["good", "garden", "garbage"], "token_budget": 256 * 20, "seeds": 2, "runs": 10}
        made = in_process.run_step(self.home, workdir, "pretrain.regmix", inputs, **{**fixed, **params})
        return made["verdict"]


@pytest.fixture
def desk(home: Home, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(workers, "cores", lambda: 1)
    return Desk(home)


@pytest.mark.slow
def test_the_source_that_is_like_the_text_is_found(desk: Desk, tmp_path: Path) -> None:
    verdict = desk.search(tmp_path / "w")
    weights = json.loads(verdict.file("weights.json").read_text())
    assert max(weights, key=weights.get) == "good"
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    runs = pq.read_table(verdict.file("runs.parquet")).to_pandas()
    assert len(runs) == 10
    assert np.corrcoef(runs["weight_good"], runs["bits_per_byte"])[0, 1] < -0.5
    said = json.loads(verdict.file("verdict.json").read_text())
    pairs = [(one["before_name"], one["after_name"]) for one in said["comparisons"]]
    assert pairs == [("natural", "even"), ("natural", "proposed"), ("even", "proposed")]
    proposed = said["comparisons"][1]
    assert proposed["delta"] < 0
    shown = page(build_report([verdict]))
    assert shown.count('class="dot c0"') == 10
    assert "Predicted and measured" in shown


def test_even_proportions_are_chosen_where_they_are_best(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are given, not trained: the proposal beats natural proportions, and even ones beat both."""
    mixtures = np.random.default_rng(1).dirichlet([1, 1, 1], 10)
    fits = fit_all(mixtures, mixtures[:, 2])
    found = Search(("good", "garden", "garbage"), mixtures, mixtures[:, 2], fits, np.array([0.0, 0.5, 0.5]), (0, 1))

    def measured(loss: float, seed: int, plan: Plan) -> Measured:
        bits = [text.documents.bytes[None] * (loss + 0.01 * seed) for text in plan.heldout]
        return Measured(np.ones(1), bits)

    def confirm(
        ctx: object, params: object, sources: object, plan: Plan, proposal: object
    ) -> dict[str, list[Measured]]:
        losses = {"natural": 3.0, "even": 2.5, "proposed": 2.8}
        return {name: [measured(loss, seed, plan) for seed in range(2)] for name, loss in losses.items()}

    monkeypatch.setattr(regmix, "_search", lambda *_: found)
    monkeypatch.setattr(regmix, "_confirm", confirm)
    said = json.loads(desk.search(tmp_path / "w").file("verdict.json").read_text())
    assert (said["decision"], said["chosen"]) == ("promoted", "even")


def test_a_mixture_is_whole_documents_of_its_sources(desk: Desk) -> None:
    sources = [Source.load(one.path, label) for one, label in zip(desk.sources, "abc", strict=True)]
    stream = mixed_stream(sources, [0.5, 0.5, 0.0], 4000, seed=1)
    assert len(stream) == pytest.approx(4000, abs=60)
    ends = np.flatnonzero(stream.tokens == stream.eos_id)
    documents = np.split(stream.tokens, ends[:-1] + 1)
    known = [
        [source.stream.tokens[o : o + n].tolist() for o, n in zip(source.offsets, source.sizes, strict=True)]
        for source in sources
    ]
    shares = [sum(len(one) for one in documents if one.tolist() in texts) / len(stream) for texts in known]
    assert shares == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    assert drawn_shares(sources, [0.5, 0.5, 0.0], 4000, seed=1) == pytest.approx(shares)
    with pytest.raises(DataError, match="no document fits into a budget of 2 tokens"):
        drawn_shares(sources, [0.5, 0.5, 0.0], 2, seed=1)


def test_what_cannot_be_had_is_said(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no mixture gives 10,000,000 tokens within 1 passes"):
        desk.search(tmp_path / "w", target_tokens=10**7, max_epochs=1, runs=8)
