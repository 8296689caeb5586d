"""Learned quality: features are sets of words, the fit is what another optimiser finds, figures are formulas."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, sparse, stats

from liuyi.core.errors import ArtifactError
from liuyi.core.words import split as words_in
from liuyi.data.quality.classifier import ABOUT, Classifier
from liuyi.data.quality.examples import Example, Sample
from liuyi.data.quality.features import BUCKETS, MAX_CHARS, features
from liuyi.data.quality.measure import auc, calibration_error, rates, with_intervals
from liuyi.data.quality.train import calibrate, fit_logistic, held_out_scores, split, train

TEXTS = [
    "The reader opens a file, and the file is read.",
    "质量很高的文章，读者打开文件。",
    "one",
    "",
    "...",
    "Ünïcode tëxt",
]


def test_a_feature_is_a_word_or_a_pair_of_neighbours() -> None:
    for text, row in zip(TEXTS, features(TEXTS), strict=True):
        words = words_in(text)
        assert row.nnz == len(set(words)) + len(set(pairwise(words)))
        assert np.linalg.norm(row.data) == pytest.approx(1 if words else 0)


def test_features_do_not_depend_on_what_else_is_there() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randrange(2000))) for _ in range(200)] + TEXTS
    alone = sparse.vstack([features([text]) for text in texts])
    assert (features(texts) != alone).nnz == 0
    assert features([]).shape == (0, BUCKETS)


def test_no_pair_crosses_from_one_text_to_the_next() -> None:
    both = features(["alpha", "beta"])
    assert both.nnz == 2
    assert features(["alpha beta"]).nnz == 3


def test_case_punctuation_and_repetition_do_not_count_order_does() -> None:
    plain, shouted, turned = features(["red fox, red fox", "RED FOX! (red) fox", "fox red fox red fox red"])
    assert (plain != shouted).nnz == 0
    assert (features(["a b c"]) != features(["c b a"])).nnz > 0
    assert turned.nnz == plain.nnz


def test_a_document_is_judged_by_its_beginning() -> None:
    head = "word " * (MAX_CHARS // 5)
    assert (features([head + "another"]) != features([head])).nnz == 0


def problem(seed: int, examples: int = 60, columns: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(examples, columns))
    return rows, rows[:, 0] + rng.normal(size=examples) > 0.5


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_fit_is_the_minimum_that_another_optimiser_finds(l2: float) -> None:
    rows, good = problem(3)
    weight = np.where(good, 0.5 / good.sum(), 0.5 / (~good).sum())

    def objective(point: np.ndarray) -> float:
        margins = np.where(good, 1, -1) * (rows @ point[:-1] + point[-1])
        return float(weight @ np.log1p(np.exp(-margins)) + l2 / 2 * point[:-1] @ point[:-1])

    alpha, bias = fit_logistic(rows @ rows.T, good, l2)
    expected = optimize.minimize(objective, np.zeros(rows.shape[1] + 1), method="BFGS", options={"gtol": 1e-8}).x
    assert rows.T @ alpha == pytest.approx(expected[:-1], abs=2e-4)
    assert bias == pytest.approx(expected[-1], abs=2e-4)


def test_separable_examples_converge() -> None:
    rows = np.eye(6)
    good = np.arange(6) < 3
    alpha, bias = fit_logistic(rows @ rows.T, good, 1e-5)
    margins = rows @ rows.T @ alpha + bias
    assert np.isfinite(alpha).all()
    assert ((margins > 0) == good).all()


def test_calibrated_probabilities_add_up_to_the_good_ones() -> None:
    margins, good = np.random.default_rng(1).normal(size=400), np.zeros(400, bool)
    good[:100] = True
    margins[:100] += 1.5
    slope, offset = calibrate(margins, good)
    share = 1 / (1 + np.exp(-(slope * margins + offset)))
    # Platt's targets, each class with half of the weight.
    target = np.where(good, 101 / 102, 1 / 302)
    weight = np.where(good, 0.5 / 100, 0.5 / 300)
    assert weight @ share == pytest.approx(weight @ target, abs=1e-4)
    assert (weight * margins) @ share == pytest.approx((weight * margins) @ target, abs=1e-4)


def test_margins_that_say_nothing_give_even_odds() -> None:
    margins = np.random.default_rng(2).normal(size=2000)
    slope, offset = calibrate(margins, np.arange(2000) % 2 == 0)
    assert abs(slope) < 0.15
    assert abs(offset) < 0.1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, good = np.array([s for s, _ in pairs]), np.array([g for _, g in pairs])
    if good.all() or not good.any():
        return
    expected = stats.mannwhitneyu(scores[good], scores[~good]).statistic / (good.sum() * (~good).sum())
    assert auc(scores, good) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=4, max_size=60))
def test_folds_keep_groups_whole_and_hold_both_classes(pairs: list[tuple[int, bool]]) -> None:
    groups, good = np.array([g for g, _ in pairs]), np.array([label for _, label in pairs])
    if good.sum() < 2 or (~good).sum() < 2:
        return
    fold = split(good, groups, 5)
    majority = {g: good[groups == g].sum() * 2 > (groups == g).sum() for g in set(groups.tolist())}
    if min(sum(majority.values()), len(majority) - sum(majority.values())) >= 2:
        assert all(len(set(fold[groups == g])) == 1 for g in majority)
    for number in range(fold.max() + 1):
        assert good[fold == number].any()
        assert not good[fold == number].all()
        assert good[fold != number].any()
        assert not good[fold != number].all()


def test_precision_is_at_equal_odds() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1])
    good = np.array([True, True, True, True, False, False])
    precision, recall = rates(scores, good, 0.5)
    assert recall == 3 / 4
    assert precision == pytest.approx(0.75 / (0.75 + 0.5))
    assert rates(scores, good, 0.95) == (1.0, 0.0)


def test_calibration_error_is_the_distance_from_the_truth() -> None:
    scores = np.full(1000, 0.75)
    good = np.arange(1000) % 2 == 0
    assert calibration_error(scores, good) == pytest.approx(0.25)


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    good = np.arange(80) < 40
    scores = rng.normal(size=80) + good
    once = with_intervals(scores, good, np.arange(80))
    ten = with_intervals(np.repeat(scores, 10), np.repeat(good, 10), np.repeat(np.arange(80), 10))
    for name, figure in once.items():
        assert vars(ten[name]) == pytest.approx(vars(figure))
    spread = with_intervals(np.repeat(scores, 10), np.repeat(good, 10), np.arange(800))["AUC"]
    assert spread.high - spread.low < 0.6 * (once["AUC"].high - once["AUC"].low)
    assert once["AUC"].low < once["AUC"].value < once["AUC"].high


def test_what_only_names_the_source_is_not_taken_for_quality() -> None:
    """Each source has words of its own and a label that says nothing: seen sources could be learnt by heart."""
    rng = random.Random(5)
    texts, labels, groups = [], [], []
    for source in range(40):
        for _ in range(6):
            texts.append(" ".join(rng.choices([f"w{source}x{n}" for n in range(8)], k=30)))
            labels.append(source % 2 == 0)
            groups.append(source)
    rows, good = features(texts), np.array(labels)
    assert auc(held_out_scores(rows, good, np.array(groups)), good) < 0.7
    assert auc(held_out_scores(rows, good, np.arange(len(good))), good) > 0.95


def spam_and_prose(count: int) -> tuple[list[str], np.ndarray]:
    rng = random.Random(2)
    prose, spam = (
        words_in("the reader opens a file and returns its lines with care"),
        words_in("buy now click here free"),
    )
    texts = [" ".join(rng.choices(prose, k=30) + rng.choices(spam, k=4 if i < count else 25)) for i in range(2 * count)]
    return texts, np.arange(2 * count) < count


def test_classes_of_unequal_size_get_the_border_at_one_half() -> None:
    texts, good = spam_and_prose(120)
    few = np.r_[0:120, 120:140]
    classifier = train(features([texts[i] for i in few]), good[few], np.arange(len(few)))
    scores = classifier.score(texts)
    assert auc(scores, good) > 0.99
    assert (scores[good] > 0.5).mean() > 0.95
    assert (scores[~good] < 0.5).mean() > 0.95


@given(st.lists(st.binary(min_size=1, max_size=2), max_size=60), st.integers(1, 4), st.sets(st.binary(max_size=1)))
def test_a_sample_is_that_of_the_smallest_keys_in_bounded_memory(
    keys: list[bytes], most: int, left: set[bytes]
) -> None:
    sample = Sample(most, left)
    for number, key in enumerate(keys):
        sample.add(key, Example(str(number), ""))
        assert len(sample.kept) < 4 * most
    wanted = sorted({*keys} - left)[:most]
    assert [keys[int(example.text)] for example in sample.without()] == wanted
    assert all(keys.index(keys[int(example.text)]) == int(example.text) for example in sample.without()[:most])


def test_a_classifier_is_read_as_it_was_written(tmp_path: Path) -> None:
    texts, good = spam_and_prose(30)
    made = train(features(texts), good, np.arange(len(good)))
    made.save(tmp_path)
    assert (Classifier.load(tmp_path).score(texts) == made.score(texts)).all()
    about = (tmp_path / ABOUT).read_text()
    (tmp_path / ABOUT).write_text(about.replace('"features": 1', '"features": 0'))
    with pytest.raises(ArtifactError, match="other features"):
        Classifier.load(tmp_path)
    (tmp_path / ABOUT).write_text("{")
    with pytest.raises(ArtifactError, match="not a classifier"):
        Classifier.load(tmp_path)
