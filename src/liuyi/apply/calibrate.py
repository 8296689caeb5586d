"""Confidence that means what it says, and the threshold that an allowed risk asks for.

A model's log-probability orders its answers well and is a poor probability. Platt scaling (Platt, 1999) or isotonic
regression (Zadrozny and Elkan, 2002) fitted on held-out answers turns it into one. The threshold is the lowest one
whose error rate among the answers above it is, at the level asked for, below the allowed risk: fixed-sequence testing
of Clopper-Pearson bounds from several starts ("Learn then Test", Angelopoulos et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.evaluate.stats import clopper_pearson, effective_items, labels

Floats = NDArray[np.float64]
Method = Literal["platt", "isotonic"]
Score = Literal["sum", "mean", "min"]


_SUREST = 1e-9


def score_logprobs(logprobs: Sequence[float], score: Score) -> float:
    """One figure from the log-probabilities of an answer's tokens: the log-odds of the whole answer (`sum`), of its
    tokens' geometric mean or of its least likely token; minus infinity for no token.

    In log-odds a model that is calibrated already stays as it is: Platt's line is then the identity.
    """
    if not logprobs:
        return -math.inf
    match score:
        case "sum":
            logprob = sum(logprobs)
        case "mean":
            logprob = sum(logprobs) / len(logprobs)
        case "min":
            logprob = min(logprobs)
    logprob = min(float(logprob), -_SUREST)
    return logprob - math.log(-math.expm1(logprob))


@dataclass(frozen=True)
class Calibrator:
    """From a score to the probability that the answer is right; never falls as the score rises."""

    method: Method
    parameters: tuple[float, ...]
    """Platt: slope and intercept. Isotonic: scores and, after them, the probability at each."""

    def __call__(self, score: float) -> float:
        if score == -math.inf:
            return 0.0
        if self.method == "platt":
            slope, intercept = self.parameters
            return float(_sigmoid(np.array([slope * score + intercept]))[0])
        half = len(self.parameters) // 2
        return float(np.interp(score, self.parameters[:half], self.parameters[half:]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Calibrator:
        return cls(value["method"], tuple(value["parameters"]))


def fit(scores: Sequence[float], right: Sequence[bool], method: Method) -> Calibrator:
    """Fit on scores [items] of held-out answers and whether each was right.

    Raises DataError if there are fewer than ten answers.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    known = np.isfinite(x)
    x, y = x[known], y[known]
    if len(x) < 10:
        raise DataError(f"{len(x)} answers are too few to calibrate on", hint="give an eval set with more items")
    return _platt(x, y) if method == "platt" else _isotonic(x, y)


def _platt(x: Floats, y: Floats) -> Calibrator:
    """Logistic regression on one score, with Platt's smoothed targets so that it stays finite when classes part."""
    good, bad = float(y.sum()), float(len(y) - y.sum())
    target = np.where(y == 1, (good + 1) / (good + 2), 1 / (bad + 2))
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    z = (x - centre) / spread
    weights = np.zeros(2)
    design = np.stack([z, np.ones_like(z)], axis=1)
    for _ in range(100):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        weights = weights - move
        if float(np.abs(move).max()) < 1e-10:
            break
    slope = max(float(weights[0]), 0.0) / spread
    return Calibrator("platt", (slope, float(weights[1]) - slope * centre))


def _isotonic(x: Floats, y: Floats) -> Calibrator:
    from scipy.optimize import isotonic_regression

    order = np.argsort(x, kind="stable")
    levels, first, counts = np.unique(x[order], return_index=True, return_counts=True)
    means = np.add.reduceat(y[order], first) / counts
    fitted = isotonic_regression(means, weights=counts.astype(np.float64)).x
    return Calibrator("isotonic", (*map(float, levels), *map(float, fitted)))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence: how sure, how often right, how many."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Bins of equal count, from the least to the most confident (Nguyen and O'Connor, 2015)."""
    c, y = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    order = np.argsort(c, kind="stable")
    return [
        Bin(float(c[part].mean()), float(y[part].mean()), len(part))
        for part in np.array_split(order, min(bins, max(1, len(order))))
        if len(part)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy over the answers (Naeini et al., 2015); 0 … 1."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / total if total else 0.0


def error_bound(wrong: Sequence[bool], clusters: Sequence[object], level: float) -> float:
    """Upper end of a one-sided Clopper-Pearson interval of the error rate; clustered items count for less."""
    values = np.asarray(wrong, dtype=np.float64)
    if not len(values):
        return 1.0
    worth = effective_items(values, labels(list(clusters), len(values)))
    return clopper_pearson(float(values.mean()) * worth, worth, level=1 - 2 * (1 - level))[1]


@dataclass(frozen=True)
class Threshold:
    """The least confidence at which answers may be given, and what was seen above it."""

    value: float
    """Above 1 where no threshold holds the risk: then nothing is answered."""
    answered: int
    wrong: int
    bound: float
    """Upper confidence bound of the error rate among what is answered."""
    risk: float
    level: float

    @property
    def holds(self) -> bool:
        return self.value <= 1.0


def choose_threshold(
    confidence: Sequence[float],
    right: Sequence[bool],
    clusters: Sequence[object],
    *,
    risk: float,
    level: float = 0.95,
    steps: int = 40,
    starts: int = 4,
) -> Threshold:
    """The lowest confidence above which at most `risk` of the answers are wrong, with confidence `level`.

    Candidates are quantiles of the confidences, so they do not depend on what was right. From each of `starts` places
    they are tested downwards, each start with an equal part of the error probability, until one fails.
    """
    c, wrong = np.asarray(confidence, dtype=np.float64), ~np.asarray(right, dtype=bool)
    marks = np.asarray(labels(list(clusters), len(c)))
    candidates = np.unique(np.quantile(c, np.linspace(0, 1, steps)))[::-1] if len(c) else np.empty(0)
    strict = 1 - (1 - level) / starts
    best = Threshold(math.inf, 0, 0, 1.0, risk, level)
    for start in np.linspace(0, len(candidates) * 0.75, starts).astype(int):
        for value in candidates[start:]:
            above = c >= value
            bound = error_bound(list(wrong[above]), list(marks[above]), strict)
            if bound > risk:
                break
            if value < best.value:
                best = Threshold(float(value), int(above.sum()), int(wrong[above].sum()), bound, risk, level)
    return best
