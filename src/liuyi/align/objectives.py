"""What learning from preferences minimises: each a small function of summed log-probabilities, in nats.

`policy` and `reference` `[pairs, 2]` hold the chosen and the rejected answer's log-probability under the model that is
trained and under the one that it began as, `lengths` `[pairs, 2]` the answers' numbers of tokens. Each gives the loss
of every pair, `[pairs]`. With gain = policy - reference and mean = policy / lengths:

    dpo     -log σ(β · (gain_chosen - gain_rejected))                              arXiv 2305.18290, equation 7
    cdpo    the same, with labels that are wrong with probability ε                ericmitchell.ai/cdpo.pdf
    ipo     (gain_chosen / length - gain_rejected / length - 1 / 2β)²              arXiv 2310.12036, equation 17
    simpo   -log σ(β · (mean_chosen - mean_rejected) - γ)                          arXiv 2405.14734, equation 6
    orpo    -mean_chosen - β · log σ(log odds(chosen) - log odds(rejected))        arXiv 2403.07691, equation 6
    kto     λ · (1 - σ(±β · (gain - KL))), + for a wanted answer                   arXiv 2402.01306, equation 8
    bradley_terry   -log σ(reward_chosen - reward_rejected - margin)               arXiv 2203.02155; 2307.09288
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Objective = Literal["dpo", "cdpo", "ipo", "simpo", "orpo", "kto"]


def dpo(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation."""
    return -functional.logsigmoid(beta * _difference(policy - reference))


def cdpo(policy: Tensor, reference: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Conservative DPO: a share of the labels is held to be wrong."""
    logits = beta * _difference(policy - reference)
    kept, turned = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    return -(1 - label_smoothing) * kept - label_smoothing * turned


def ipo(policy: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation. Gains are taken per token, as the paper's authors advise: the square would
    grow with the answers' length otherwise. β is the paper's τ."""
    return (_difference((policy - reference) / lengths) - 1 / (2 * beta)).square()


def simpo(policy: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation: no reference, and a margin γ."""
    return -functional.logsigmoid(beta * _difference(policy / lengths) - gamma)


def orpo(policy: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Odds-ratio preference optimisation: no reference, but the chosen answer's own likelihood. Odds are those of the
    geometric mean of an answer's token probabilities."""
    mean = policy / lengths
    odds = mean - _log1mexp(mean)
    return -mean[:, 0] - beta * functional.logsigmoid(_difference(odds))


def kto(gain: Tensor, desirable: Tensor, kl: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """Kahneman-Tversky optimisation of single answers `[answers]`, each wanted or not (`desirable`, bool).

    `kl` is the reference point, a scalar that no gradient goes through; `weights` are those of wanted and of unwanted
    answers, the paper's λ.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, weights[0], weights[1])
    return weight * (1 - torch.sigmoid(sign * beta * (gain - kl)))


def bradley_terry(rewards: Tensor, margin: Tensor) -> Tensor:
    """A reward model's loss from rewards `[pairs, 2]` and by how much each chosen one should lead, `[pairs]`."""
    return -functional.logsigmoid(_difference(rewards) - margin)


def _difference(values: Tensor) -> Tensor:
    return values[:, 0] - values[:, 1]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - eˣ) for x < 0, exact at both ends (Mächler 2012)."""
    small = x > -0.6931472
    # Each branch gets values that it is finite for: a gradient of the other one would be NaN.
    near = torch.log(-torch.expm1(torch.where(small, x, -1.0).clamp(max=-1e-7)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)
