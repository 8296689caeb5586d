"""Cross-entropy straight from hidden states, without ever holding the logits of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The target of a token that is not learnt from."""


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None = None
) -> Tensor:
    """The formula: sum over tokens of token_weight · −log softmax(hidden·weightᵀ)[target]."""
    losses = functional.cross_entropy(
        hidden.float() @ weight.float().T, targets, reduction="none", ignore_index=IGNORED
    )
    return (losses if token_weights is None else losses * token_weights).sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None = None,
    *,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Summed cross-entropy, a float32 scalar in nats, of targets [tokens] under the logits hidden·weightᵀ.

    hidden [tokens, hidden], weight [vocab, hidden].

    Tokens with target −100 are left out; `token_weights` [tokens] multiplies each token's loss. Computed in the dtype
    of `hidden`, `chunk_tokens` rows of logits at a time; the gradients are made in the same pass, so that the
    logits are needed once.
    """
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, token_weights, chunk_tokens)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None, chunk_tokens: int
    ) -> Tensor:
        learnt = (targets != IGNORED).nonzero().squeeze(1)
        head = weight.to(hidden.dtype)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in torch.split(learnt, chunk_tokens):
            part, wanted = hidden[rows], targets[rows, None]
            logprobs = torch.log_softmax((part @ head.T).float(), dim=-1)
            losses = -logprobs.gather(1, wanted).squeeze(1)
            scale = None if token_weights is None else token_weights[rows].float()
            total += (losses if scale is None else losses * scale).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad_logits = logprobs.exp_()
            grad_logits.scatter_add_(1, wanted, grad_logits.new_full(wanted.shape, -1.0))
            if scale is not None:
                grad_logits *= scale[:, None]
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ head
            if grad_weight is not None:
                grad_weight += (grad_logits.T @ part).to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int = 1024) -> Tensor:
    """Log-probability (float32, nats) of each target [tokens] under hidden [tokens, hidden]·weight [vocab, hidden]ᵀ.

    Zero where the target is −100. Logits are made `chunk_tokens` rows at a time and made again for the gradient, so
    each token may be weighed by what comes out (preference objectives); `linear_cross_entropy` is cheaper.
    """
    parts = [
        torch.utils.checkpoint.checkpoint(_logprobs, part, weight, wanted, use_reentrant=False)
        for part, wanted in zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
    ]
    return torch.cat(parts)


def _logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = functional.linear(hidden, weight.to(hidden.dtype)).float()
    return -functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
