"""Cross-entropy straight from hidden states, without ever holding the logits of all tokens.

`linear_cross_entropy` makes its gradients while it has the logits; `token_logprobs` makes the logits again for them,
so that the loss may be any function of what it returns. Both go through the tokens in chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The target of a token that is not learnt from."""

CHUNK_LOGITS = 1 << 22
"""Logits held at a time, about: 16 MiB in float32."""


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None = None
) -> Tensor:
    """The formula: sum over tokens of token_weight · −log softmax(hidden·weightᵀ)[target]."""
    logits = functional.linear(hidden, weight.to(hidden.dtype)).float()
    losses = functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    return (losses if token_weights is None else losses * token_weights).sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None = None,
    *,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Summed cross-entropy, a float32 scalar in nats, of targets [tokens] under the logits hidden·weightᵀ.

    hidden [tokens, hidden], weight [vocab, hidden]. Tokens with target −100 are left out, and cost nothing;
    `token_weights` [tokens] multiplies each token's loss and is not itself differentiated. The products are taken in
    the dtype of `hidden`, gradients of the weight are summed in its own. Every target must be below the vocabulary's
    size.
    """
    learnt = targets != IGNORED
    if not bool(learnt.all()):
        rows = learnt.nonzero().squeeze(1)
        hidden, targets = hidden.index_select(0, rows), targets[rows]
        token_weights = None if token_weights is None else token_weights[rows]
    chunk_tokens = chunk_tokens or max(128, CHUNK_LOGITS // weight.shape[0])
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, token_weights, chunk_tokens
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None, chunk_tokens: int
    ) -> Tensor:
        head = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        scratch = hidden.new_empty(min(chunk_tokens, hidden.shape[0]), weight.shape[0])
        for begin in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(begin, begin + chunk_tokens)
            part, wanted = hidden[rows], targets[rows, None]
            logits = torch.mm(part, head.T, out=scratch[: part.shape[0]]).float()
            logprobs = torch._log_softmax(logits, -1, False, out=logits)
            losses = logprobs.gather(1, wanted)
            scale = None if token_weights is None else token_weights[rows, None].to(losses.dtype)
            total -= (losses if scale is None else losses * scale).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = softmax − one-hot, made where the logits were.
            grad_logits = logprobs.exp_()
            grad_logits.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
            if scale is not None:
                grad_logits.mul_(scale)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, head, out=grad_hidden[rows])
            if grad_weight is None:
                continue
            if grad_weight.dtype == part.dtype:
                grad_weight.addmm_(grad_logits.T, part)
            else:
                grad_weight.add_(grad_logits.T @ part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Log-probability, float32 in nats, of each target [tokens] under the logits hidden·weightᵀ; 0 where it is −100.

    hidden [tokens, hidden], weight [vocab, hidden]. For objectives that weigh tokens by what comes out, such as
    preferences between answers; where a plain sum is wanted, `linear_cross_entropy` is cheaper.
    """
    chunk_tokens = chunk_tokens or max(128, CHUNK_LOGITS // weight.shape[0])
    parts = zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_logprobs(part, weight, wanted) for part, wanted in parts])
    return torch.cat([checkpoint(_logprobs, part, weight, wanted, use_reentrant=False) for part, wanted in parts])


def _logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = functional.linear(hidden, weight.to(hidden.dtype)).float()
    return -functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
