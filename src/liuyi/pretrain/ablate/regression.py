"""From mixtures and their losses to the loss of any mixture: ridge regression on features that suit mixtures.

Which features and how much ridge is decided by predicting each run from all the others. Loss falls quickly with the
first tokens of a source and slowly later, so roots and logarithms of the weights stand beside the weights themselves;
squares and products let sources help or hinder each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from liuyi.pretrain.ablate.difference import Floats

_LEAST_WEIGHT = 0.01
RIDGES = tuple(10.0**power for power in range(-4, 3))


def _products(weights: Floats) -> Floats:
    first, second = np.triu_indices(weights.shape[1])
    return np.concatenate([weights, weights[:, first] * weights[:, second]], axis=1)


FEATURES: dict[str, Callable[[Floats], Floats]] = {
    "linear": lambda weights: weights,
    "root": np.sqrt,
    "logarithm": lambda weights: np.log(weights + _LEAST_WEIGHT),
    "quadratic": _products,
}


@dataclass(frozen=True)
class Fit:
    """A regression that was fitted, and how well it predicts a run that it has not seen."""

    name: str
    ridge: float
    centre: Floats
    scale: Floats
    coefficients: Floats
    intercept: float
    left_out: Floats
    """Prediction of each run from all the others, `[runs]`."""
    error: float
    """Root mean square of what these miss."""
    rank_correlation: float
    """Spearman's, between these and what was measured."""

    def predict(self, mixtures: Floats) -> Floats:
        """Losses `[mixtures]`."""
        features = (FEATURES[self.name](mixtures) - self.centre) / self.scale
        return np.asarray(features @ self.coefficients + self.intercept)


def fit(name: str, ridge: float, mixtures: Floats, losses: Floats) -> Fit:
    """Ridge regression of losses `[runs]` on features of mixtures `[runs, sources]`.

    Predictions of runs left out come from the hat matrix in closed form.
    """
    from scipy.stats import spearmanr

    raw = FEATURES[name](mixtures)
    centre, scale = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    features = (raw - centre) / scale
    solve = _solver(features, ridge)
    coefficients = solve @ (losses - losses.mean())
    leverage = (features * solve.T).sum(axis=1) + 1 / len(losses)
    missed = (losses - losses.mean() - features @ coefficients) / np.maximum(1 - leverage, 1e-6)
    left_out = losses - missed
    rank = float(spearmanr(left_out, losses).statistic) if np.ptp(left_out) > 0 and np.ptp(losses) > 0 else 0.0
    error = float(np.sqrt(np.mean(missed**2)))
    return Fit(name, ridge, centre, scale, coefficients, float(losses.mean()), left_out, error, rank)


def _solver(features: Floats, ridge: float) -> Floats:
    """The matrix `[features, runs]` that gives coefficients from centred losses."""
    gram = features.T @ features + ridge * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(gram, features.T))


def fit_all(mixtures: Floats, losses: Floats) -> list[Fit]:
    """The best ridge for each kind of features; first the one that ranks runs left out best."""
    best = [
        min((fit(name, ridge, mixtures, losses) for ridge in RIDGES), key=lambda one: one.error) for name in FEATURES
    ]
    return sorted(best, key=lambda one: (-one.rank_correlation, one.error))


def propose(chosen: Fit, candidates: Floats, *, top: int = 100) -> Floats:
    """The mean of the `top` candidates with the least predicted loss, which is steadier than the very best one."""
    order = np.argsort(chosen.predict(candidates), kind="stable")[:top]
    return np.asarray(candidates[order].mean(axis=0))


def prediction_interval(
    chosen: Fit, mixtures: Floats, losses: Floats, proposal: Floats, level: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Where the loss of one more run at `proposal` lies: the spread of fits to resampled runs and what a fit misses."""
    from scipy.special import ndtri

    features, there = ((FEATURES[chosen.name](m) - chosen.centre) / chosen.scale for m in (mixtures, proposal[None]))
    values = []
    for rows in rng.integers(0, len(losses), (300, len(losses))):
        here, mean = features[rows], losses[rows].mean()
        middle = here.mean(axis=0)
        coefficients = _solver(here - middle, chosen.ridge) @ (losses[rows] - mean)
        values.append(float((there[0] - middle) @ coefficients + mean))
    spread = float(ndtri((1 + level) / 2)) * float(np.hypot(np.std(values), chosen.error))
    centre = float(chosen.predict(proposal[None])[0])
    return centre - spread, centre + spread
