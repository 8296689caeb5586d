"""Mixtures: what is allotted, what is drawn, what is written, and what training makes of phases."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import artifact, corpus, document, prose, run_step
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.data.mix.params import MixParams, Phase
from liuyi.data.mix.plan import make_plan
from liuyi.data.tokens import Tokens, write_tokens
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.batches import ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.mixture import Stretch, allot, draw, natural_weights

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=6)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[Stretch], int, list[float]]:
    """Sizes, stretches, a budget and bounds."""
    sizes = draw(SIZES)
    weight = st.one_of(st.just(0.0), st.floats(0.001, 1))
    weights = st.lists(weight, min_size=len(sizes), max_size=len(sizes)).filter(lambda w: sum(w) > 0.01)
    raw = draw(st.lists(weights, min_size=1, max_size=4))
    stretches = [Stretch(1 / len(raw), tuple(value / sum(one) for value in one)) for one in raw]
    bounds = [draw(st.floats(0.1, 8)) for _ in sizes]
    return sizes, stretches, draw(st.integers(1, 50_000)), bounds


@given(problems())
def test_what_is_allotted(problem: tuple[list[int], list[Stretch], int, list[float]]) -> None:
    """Nobody exceeds a bound or gets what they have no weight in; the budget is met unless all are used up; those
    below their bounds keep the proportions of their weights in every stretch."""
    sizes, stretches, budget, bounds = problem
    tokens = allot(sizes, stretches, budget, bounds)
    weights = np.array([stretch.weights for stretch in stretches])
    limits = np.array(sizes) * np.array(bounds)
    sums = tokens.sum(axis=0)
    assert (tokens >= 0).all()
    assert (sums <= limits * (1 + 1e-9)).all()
    assert (tokens[weights == 0] == 0).all()
    below = sums < limits * (1 - 1e-9)
    for given_here, weight, stretch in zip(tokens, weights, stretches, strict=True):
        share = stretch.share * budget
        assert given_here.sum() <= share * (1 + 1e-9)
        open_ = below & (weight > 0)
        if open_.any():
            assert given_here.sum() == pytest.approx(share)
            ratio = given_here[open_] / weight[open_]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_a_bound_gives_its_surplus_to_the_others_in_proportion() -> None:
    """By hand: 100 tokens twice are 200 of the 500 wanted; 300 go to the others as 3 to 2."""
    tokens = allot([100, 10_000, 10_000], [Stretch(1.0, (0.5, 0.3, 0.2))], 1000, [2, 4, 4])
    np.testing.assert_allclose(tokens, [[200, 480, 320]])


def test_temperature() -> None:
    assert natural_weights([100, 300]) == pytest.approx((0.25, 0.75))
    assert natural_weights([100, 400], 2) == pytest.approx((1 / 3, 2 / 3))
    assert natural_weights([1, 10**9], 1e9) == pytest.approx((0.5, 0.5))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=1, max_size=4), st.data())
def test_what_is_drawn(documents: list[list[int]], data: st.DataObject) -> None:
    """Each pass takes each document once before the next begins, and every source misses its tokens by half a
    document at most, after every stretch."""
    sizes = [np.array(one) for one in documents]
    parts = data.draw(st.integers(1, 3))
    wanted = np.array([[data.draw(st.floats(0, 2 * one.sum())) for one in sizes] for _ in range(parts)])
    drawn = draw(sizes, wanted, seed=3)
    for source, size in enumerate(sizes):
        taken = 0
        seen: list[tuple[int, int]] = []
        for at, stretch in enumerate(drawn):
            here = stretch.source == source
            seen += zip(stretch.epoch[here].tolist(), stretch.row[here].tolist(), strict=True)
            taken += int(size[stretch.row[here]].sum())
            assert abs(taken - wanted[: at + 1, source].sum()) <= size.max() / 2 + 1e-6
        assert len(set(seen)) == len(seen)
        last = max((epoch for epoch, _ in seen), default=0)
        for epoch in range(last):
            assert sum(one == epoch for one, _ in seen) == len(size)


class Shelf:
    """Three sources of tokens of unlike size and their tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        texts = [prose(number, 60) for number in range(130)]
        self.built = train_bpe(texts, 300)
        (folder / "tokenizer").mkdir(parents=True)
        self.built.save(folder / "tokenizer")
        self.tokenizer = artifact(folder / "tokenizer", "tokenizer")
        parts = {"web": texts[:80], "code": texts[80:120], "law": texts[120:]}
        self.corpora = {
            name: corpus(
                folder / f"corpus-{name}",
                [document(text, cluster=f"{name}{at}", license=name) for at, text in enumerate(part)],
            )
            for name, part in parts.items()
        }
        self.tokens = {name: self.encode(name, self.built) for name in parts}

    def encode(self, name: str, tokenizer: Tokenizer, suffix: str = "") -> Artifact:
        folder = self.folder / f"tokens-{name}{suffix}"
        folder.mkdir()
        write_tokens(folder, self.corpora[name].path, tokenizer)
        return artifact(folder, "tokens", self.corpora[name].manifest.licences)

    def mix(self, workdir: Path, sources: list[Artifact], **params: object) -> Artifact:
        given = {"sources": sources, "tokenizer": self.tokenizer}
        return run_step("data.mix", workdir, given, **params).made["tokens"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


LABELS = ("web", "code", "law")


def test_every_token_leads_back_to_its_document(shelf: Shelf, tmp_path: Path) -> None:
    sources = [shelf.tokens[name] for name in LABELS]
    made = shelf.mix(
        tmp_path / "w", sources, labels=LABELS, weights={"web": 1, "code": 1, "law": 2}, token_budget=20_000
    )
    mixed = Tokens(made.path)
    originals = {name: Tokens(one.path) for name, one in shelf.tokens.items()}
    rows = pq.read_table(made.file("documents.parquet")).to_pylist()
    assert sum(row["tokens"] for row in rows) == len(mixed) == mixed.about.tokens
    passes: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        source = originals[row["part"]]
        at = source.documents["id"].to_pylist().index(row["id"])
        start = int(source.offsets[at])
        original = source.ids[start : start + row["tokens"]]
        assert mixed.ids[row["offset"] : row["offset"] + row["tokens"]].tolist() == original.tolist()
        place = mixed.locate(row["offset"] + row["tokens"] - 1)
        assert (place.document, place.offset) == (row["id"], row["tokens"] - 1)
        passes.setdefault((row["part"], row["epoch"]), []).append(row["id"])
    assert all(len(set(ids)) == len(ids) for ids in passes.values())
    law = originals["law"]
    assert len(passes["law", 2]) == len(law.documents)
    assert made.manifest.licences == tuple(sorted(LABELS))


def test_the_plan_is_what_is_written(shelf: Shelf, tmp_path: Path) -> None:
    params = {"labels": LABELS, "weights": {"web": 3, "law": 2}, "token_budget": 15_000, "max_epochs": {"law": 2}}
    made = shelf.mix(tmp_path / "w", [shelf.tokens[name] for name in LABELS], **params)
    sizes = {name: len(Tokens(one.path)) for name, one in shelf.tokens.items()}
    plan = make_plan(MixParams(**params), sizes)  # type: ignore[arg-type]
    table = pq.read_table(made.file("documents.parquet")).to_pandas()
    longest = table["tokens"].max()
    got = table.groupby("part")["tokens"].sum()
    for label, taken in zip(LABELS, plan.taken, strict=True):
        assert abs(got.get(label, 0) - taken) <= longest / 2
    assert plan.taken[2] == 2 * sizes["law"]
    warnings = "\n".join(plan.warnings())
    assert "law: asked for" in warnings
    assert "may be gone through 2 times" in warnings
    assert "code: has no weight" in warnings


def test_what_cannot_be_met_is_said() -> None:
    plan = make_plan(MixParams(token_budget=10_000, max_epochs=1.5), {"a": 1000, "b": 500})
    assert plan.taken.sum() == pytest.approx(2250)
    assert "2,250 tokens in place of 10,000" in plan.warnings()[-1]
    repeated = make_plan(MixParams(token_budget=12_000, max_epochs=20, weights={"a": 1}), {"a": 1000, "b": 500})
    assert repeated.warnings()[0].startswith("a: gone through 12.0 times")


def test_corpora_are_encoded_and_mixtures_repeat_to_the_byte(shelf: Shelf, tmp_path: Path) -> None:
    params = {"labels": ("web", "code"), "token_budget": 5_000, "temperature": 2.0}
    made = shelf.mix(tmp_path / "a", [shelf.tokens["web"], shelf.tokens["code"]], **params)
    again = shelf.mix(tmp_path / "b", [shelf.corpora["web"], shelf.corpora["code"]], **params)
    assert made.digest == again.digest
    with pytest.raises(DataError, match="'code' is a corpus without a tokenizer"):
        run_step("data.mix", tmp_path / "c", {"sources": [shelf.tokens["web"], shelf.corpora["code"]]}, **params)


CURRICULUM = (
    Phase(until=0.5, weights={"web": 1}),
    Phase(until=0.8, weights={"web": 1, "code": 1}),
    Phase(until=1.0, weights={"law": 1}, ramp=True),
)


def test_training_keeps_phases_in_order(shelf: Shelf, tmp_path: Path) -> None:
    """Every row comes once an epoch and in its phase; within it rows are shuffled, and a batch needs no history."""
    sources = [shelf.tokens[name] for name in LABELS]
    made = shelf.mix(tmp_path / "w", sources, labels=LABELS, phases=CURRICULUM, token_budget=12_000)
    facts = json.loads(made.file("mixture.json").read_text())
    assert len(facts["phases"]) == 2 + 8
    rows = TokenRows(TokenStream(made.path), 64)
    batches = ShuffledBatches(rows, batch_rows=5, seed=7, phase_starts=rows.phase_starts)
    places = np.concatenate([batches.row_numbers(at) for at in range(2 * len(rows) // 5 + 1)])[: 2 * len(rows)]
    bounds = [*rows.phase_starts, len(rows)]
    for epoch in (places[: len(rows)], places[len(rows) :]):
        assert sorted(epoch.tolist()) == list(range(len(rows)))
        for start, end in pairwise(bounds):
            assert sorted(epoch[start:end].tolist()) == list(range(start, end))
    first_phase = places[: bounds[1]].tolist()
    assert first_phase != sorted(first_phase)
    assert first_phase != places[len(rows) :][: bounds[1]].tolist()
    fresh = ShuffledBatches(rows, batch_rows=5, seed=7, phase_starts=rows.phase_starts)
    assert fresh.row_numbers(9).tolist() == places[45:50].tolist()
    table = pq.read_table(made.file("documents.parquet")).to_pandas()
    starts = [phase["start"] for phase in facts["phases"]]
    assert set(table[table["offset"] < starts[1]]["part"]) == {"web"}
    ends = pairwise([*starts[2:], len(TokenStream(made.path))])
    ramped = [table[(table["offset"] >= start) & (table["offset"] < end)] for start, end in ends]
    law = [part.loc[part["part"] == "law", "tokens"].sum() / part["tokens"].sum() for part in ramped]
    assert np.mean(law[:4]) < np.mean(law[4:]) - 0.3


def test_sources_of_other_tokenizers_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    other = shelf.encode("code", train_bpe([prose(1)], 280), suffix="-other")
    with pytest.raises(DataError, match="make all tokens with one tokenizer"):
        shelf.mix(tmp_path / "w", [shelf.tokens["web"], other])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": {"a": 1}, "temperature": 2}, "one of weights, temperature and phases"),
        ({"weights": {"a": 0}}, "above 0"),
        ({"weights": {"a": float("inf"), "b": 1}}, "finite"),
        ({"phases": [{"until": 0.5, "weights": {"a": 1}}]}, "the last at 1"),
        ({"phases": [{"until": 1, "weights": {"a": 1}, "ramp": True}]}, "no weights to come from"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixParams.model_validate(wrong)


def test_unknown_labels_are_named() -> None:
    with pytest.raises(DataError, match="did you mean 'code'"):
        make_plan(MixParams(weights={"cod": 1}), {"code": 10, "web": 10})
