"""Train the classifier: balanced logistic regression, the penalty chosen and the scores calibrated by cross-validation.

Every split is over groups: what comes from one source is never on both sides, so what is measured is how well quality
is told on sources that were not seen; only where a kind has a single source are examples divided. All fits are made on
one matrix of inner products, which is small where features are many and examples few. They take one thread: sums do not
depend on the machine's cores then, and threads that wait for each other on busy cores took far longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse
from scipy.special import expit
from threadpoolctl import threadpool_limits

from liuyi.data.quality.classifier import Classifier

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of the L2 penalty that are tried, beside the mean loss of an example."""
FOLDS = 5
_INNER_FOLDS = 3
_NEWTON_STEPS = 50
_CONVERGED = 1e-9

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A fitted logistic regression in terms of its examples."""

    alpha: Floats
    """[examples] the weights are the sum of alpha times the features of each example."""
    bias: float
    l2: float
    slope: float
    offset: float


def train(rows: sparse.csr_matrix, good: Bools, groups: Ints) -> Classifier:
    """A classifier from rows of `features` [examples, BUCKETS], their labels, and the group of each.

    Both classes weigh the same, however many examples each has. Scores are calibrated on the margins of held-out folds,
    and the penalty is the one whose calibrated scores have the least loss there.
    """
    with threadpool_limits(1):
        fit = _fit(products(rows), good, groups, FOLDS)
    weights = np.asarray(rows.T @ fit.alpha, np.float32)
    return Classifier(weights, fit.bias, fit.slope, fit.offset, fit.l2)


def held_out_scores(
    rows: sparse.csr_matrix,
    good: Bools,
    groups: Ints,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """[examples] the score of each example by a classifier that saw nothing of its fold, neither to choose its penalty
    nor to calibrate its scores (nested cross-validation). `on_progress` hears (folds done, in all).
    """
    inner = products(rows)
    fold = split(good, groups, FOLDS)
    scores = np.zeros(len(good))
    count = int(fold.max()) + 1
    for number in range(count):
        seen, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        with threadpool_limits(1):
            fit = _fit(inner[np.ix_(seen, seen)], good[seen], groups[seen], _INNER_FOLDS)
        margins = inner[np.ix_(held, seen)] @ fit.alpha + fit.bias
        scores[held] = expit(fit.slope * margins + fit.offset)
        on_progress(number + 1, count)
    return scores


def products(rows: sparse.csr_matrix) -> Floats:
    """[examples, examples] the inner products of rows."""
    return (rows @ rows.T).toarray().astype(np.float64)  # type: ignore[no-any-return]


def can_divide(good: Bools, groups: Ints) -> bool:
    """Whether groups can be kept whole: two and more of them are mostly good, and two and more mostly bad."""
    return _fewest(_mostly_good(good, np.unique(groups, return_inverse=True)[1])) >= 2


def _mostly_good(good: Bools, group: Ints) -> Bools:
    """[groups] of groups numbered from 0."""
    return np.asarray(np.bincount(group, np.where(good, 1.0, -1.0)) > 0)


def _fewest(mostly_good: Bools) -> int:
    return int(min(mostly_good.sum(), (~mostly_good).sum()))


def split(good: Bools, groups: Ints, folds: int) -> Ints:
    """[examples] the fold of each: groups whole, and in every fold groups of mostly good and of mostly bad examples.

    Where one of these kinds has fewer than two groups, examples are spread one by one, whatever their group.
    """
    names, group = np.unique(groups, return_inverse=True)
    mostly_good = _mostly_good(good, group)
    fewest = _fewest(mostly_good)
    if fewest < 2:
        return split(good, np.arange(len(good)), folds)
    folds = min(folds, fewest)
    of_group = np.zeros(len(names), np.int64)
    sizes = np.bincount(group)
    for kind in (mostly_good, ~mostly_good):
        members = np.flatnonzero(kind)
        loads = np.zeros(folds, np.int64)
        for member in members[np.argsort(-sizes[members], kind="stable")]:
            of_group[member] = np.argmin(loads)
            loads[of_group[member]] += sizes[member]
    return of_group[group]


def fit_logistic(inner: Floats, good: Bools, l2: float) -> tuple[Floats, float]:
    """(alpha, bias) with the least balanced mean loss + l2/2 · |weights|²; the bias is not penalised.

    Newton's method over functions, each step one Cholesky factor of [examples, examples] (Rasmussen and Williams 2006,
    §3.4). At the minimum `alpha` is −(slope of the loss) / l2.
    """
    size, weight, target = len(good), balanced(good), good.astype(np.float64)

    def value(alpha: Floats, bias: float) -> float:
        pulled = inner @ alpha
        logits = pulled + bias
        return float(weight @ (np.logaddexp(0, logits) - target * logits) + l2 / 2 * alpha @ pulled)

    alpha, bias = np.zeros(size), 0.0
    reached = value(alpha, bias)
    for _ in range(_NEWTON_STEPS):
        logits = inner @ alpha + bias
        share = expit(logits)
        curve = np.maximum(weight * share * (1 - share), 1e-12)
        aim = logits - weight * (share - target) / curve
        root = np.sqrt(curve)
        factor = linalg.cho_factor(np.eye(size) + root[:, None] * inner * root / l2, overwrite_a=True)
        solved, ones = (root * linalg.cho_solve(factor, root * right) / l2 for right in (aim, np.ones(size)))
        new_bias = solved.sum() / ones.sum()
        step, step_bias = solved - new_bias * ones - alpha, new_bias - bias
        length = 1.0
        while (now := value(alpha + length * step, bias + length * step_bias)) > reached and length > 1e-6:
            length /= 2
        alpha, bias = alpha + length * step, bias + length * step_bias
        if reached - now < _CONVERGED:
            break
        reached = now
    return alpha, float(bias)


def calibrate(margins: Floats, good: Bools) -> tuple[float, float]:
    """Slope and offset for which expit(slope · margin + offset) is the probability of good at equal odds.

    After Platt (1999), with his targets: not quite 0 and 1, so that few examples do not make the scores certain.
    """
    weight = balanced(good)
    high, low = (good.sum() + 1) / (good.sum() + 2), 1 / ((~good).sum() + 2)
    target = np.where(good, high, low)

    def value(point: Floats) -> tuple[float, Floats]:
        logits = point[0] * margins + point[1]
        pull = weight * (expit(logits) - target)
        loss = float(weight @ (np.logaddexp(0, logits) - target * logits))
        return loss, np.array([pull @ margins, pull.sum()])

    found = optimize.minimize(
        value, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    return float(found.x[0]), float(found.x[1])


def balanced(good: Bools) -> Floats:
    """[examples] weights that add up to 1, half of it for each class."""
    return np.asarray(np.where(good, 0.5 / good.sum(), 0.5 / (~good).sum()), np.float64)


def _fit(inner: Floats, good: Bools, groups: Ints, folds: int) -> Fit:
    fold = split(good, groups, folds)
    found = []
    for l2 in PENALTIES:
        margins = _held_out_margins(inner, good, fold, l2)
        slope, offset = calibrate(margins, good)
        found.append((_loss(slope * margins + offset, good), l2, slope, offset))
    _, l2, slope, offset = min(found)
    alpha, bias = fit_logistic(inner, good, l2)
    return Fit(alpha, bias, l2, slope, offset)


def _held_out_margins(inner: Floats, good: Bools, fold: Ints, l2: float) -> Floats:
    margins = np.zeros(len(good))
    for number in range(int(fold.max()) + 1):
        seen, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        alpha, bias = fit_logistic(inner[np.ix_(seen, seen)], good[seen], l2)
        margins[held] = inner[np.ix_(held, seen)] @ alpha + bias
    return margins


def _loss(margins: Floats, good: Bools) -> float:
    return float(balanced(good) @ np.logaddexp(0, -np.where(good, margins, -margins)))
