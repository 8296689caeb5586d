"""Cross-entropy straight from hidden states, without ever holding the logits of all tokens.

`linear_cross_entropy` makes its gradients while it has the logits. `token_logprobs` lets the loss be any function of
what it returns; where the head is trained it makes the logits again for that. Both go through the tokens in chunks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from liuyi.kernels.training import TrainingKernels
from liuyi.model.fused import native_for
from liuyi.model.products import product
from liuyi.model.working import in_dtype, working_copy

IGNORED = -100
"""The target of a token that is not learnt from."""

CHUNK_LOGITS = 1 << 22
"""Logits held at a time, about: 16 MiB in float32."""
NATIVE_CHUNK_LOGITS = 1 << 26
"""As many for the native kernel, which keeps them in bfloat16 and turns them into their gradient: 128 MiB."""


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
    native = native_for(hidden, width=weight.shape[0])
    chunk_tokens = chunk_tokens or max(128, (NATIVE_CHUNK_LOGITS if native else CHUNK_LOGITS) // weight.shape[0])
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, token_weights, chunk_tokens, native, torch.is_grad_enabled()
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor | None,
        chunk_tokens: int,
        native: TrainingKernels | None,
        learns: bool,
    ) -> Tensor:
        head = in_dtype(weight, hidden.dtype)
        # What autograd says of inputs is the same where gradients are switched off.
        hidden_learns, weight_learns = (learns and needs for needs in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if hidden_learns else None
        grad_weight: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        chunks = -(-hidden.shape[0] // chunk_tokens)
        rows_each = -(-hidden.shape[0] // max(chunks, 1))
        scratch = hidden.new_empty(rows_each, weight.shape[0])
        for begin in range(0, hidden.shape[0], max(rows_each, 1)):
            rows = slice(begin, begin + rows_each)
            part = hidden[rows]
            logits = product(part, head.T, out=scratch[: part.shape[0]])
            losses, grad_logits = _losses_and_gradient(
                logits, targets[rows], None if token_weights is None else token_weights[rows], native
            )
            total += losses.sum()
            if grad_hidden is not None:
                product(grad_logits, head, out=grad_hidden[rows])
            if not weight_learns:
                continue
            of_part = product(grad_logits.T, part)
            if chunks == 1:
                grad_weight = of_part
            elif grad_weight is None:
                grad_weight = of_part.to(weight.dtype)
            else:
                grad_weight.add_(of_part)
            del of_part  # Or it is there when the next one is made.
        if weight_learns and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.kept = weight.dtype, working_copy(weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # Most often the loss is what is differentiated, and the gradient of a head is not worth a pass for nothing.
        if grad.device.type != "cpu" or grad.item() != 1.0:
            grad_hidden = None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype)
            grad_weight = None if grad_weight is None else grad_weight.to(ctx.weight_dtype) * grad.to(ctx.weight_dtype)
        if ctx.kept is not None and grad_weight is not None:
            ctx.kept.lend_gradient(grad_weight)
        return grad_hidden, grad_weight, None, None, None, None, None


def _losses_and_gradient(
    logits: Tensor, targets: Tensor, token_weights: Tensor | None, native: TrainingKernels | None
) -> tuple[Tensor, Tensor]:
    """Each token's loss [tokens], and the gradient of logits [tokens, vocab] in their dtype; perhaps in their place."""
    if native:
        if not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
            raise IndexError(f"a target is beyond the vocabulary of {logits.shape[1]}")
        losses = torch.empty(logits.shape[0])
        weights = None if token_weights is None else token_weights.float().contiguous()
        native.cross_entropy(logits, targets.contiguous(), weights, losses)
        return losses, logits
    wanted = targets[:, None]
    wide = logits.float()
    logprobs = torch._log_softmax(wide, -1, False, out=wide)
    losses = -logprobs.gather(1, wanted)
    # d loss / d logits = softmax − one-hot, made where the logits were.
    gradient = logprobs.exp_()
    gradient.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
    if token_weights is not None:
        scale = token_weights[:, None].to(losses.dtype)
        losses, gradient = losses * scale, gradient.mul_(scale)
    return losses, gradient.to(logits.dtype)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Log-probability, float32 in nats, of each target [tokens] under the logits hidden·weightᵀ; 0 where it is −100.

    hidden [tokens, hidden], weight [vocab, hidden]. For objectives that weigh tokens by what comes out, such as
    preferences between answers; where a plain sum is wanted, `linear_cross_entropy` is cheaper. With a weight that is
    not trained, as beside an adapter, it costs the same: a token's gradient is a number times a vector known at once.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        chunk_tokens = chunk_tokens or max(128, CHUNK_LOGITS // weight.shape[0])
        parts = zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
        # It draws no random numbers, so there is no state of generators to come back to.
        again = partial(checkpoint, _logprobs, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(part, weight, wanted) for part, wanted in parts])
    native = native_for(hidden, width=weight.shape[0])
    chunk_tokens = chunk_tokens or max(128, (NATIVE_CHUNK_LOGITS if native else CHUNK_LOGITS) // weight.shape[0])
    rows = (targets != IGNORED).nonzero().squeeze(1)
    found: Tensor = _FrozenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden[rows], weight, targets[rows], chunk_tokens, native
    )
    return found.new_zeros(targets.shape).index_add(0, rows, found)


def _logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = _logits_from_target(hidden, in_dtype(weight, hidden.dtype), targets.clamp(min=0)).float()
    return -functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


def _logits_from_target(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """hidden·headᵀ, [tokens, vocab] in their dtype; of 16 bits, less the target's own logit.

    A softmax does not change by that. But where logits lie about 20, bfloat16 has steps of 0.125, which is much for a
    log-probability; about 0, where the target's and those of likely tokens are then, it is finer.
    """
    if torch.finfo(hidden.dtype).bits > 16:
        return torch.mm(hidden, head.T)
    with torch.no_grad():
        own = (hidden.float() * head[targets].float()).sum(dim=1, keepdim=True).to(hidden.dtype)
    return torch.addmm(-own, hidden, head.T)


class _FrozenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, native: TrainingKernels | None
    ) -> Tensor:
        head = in_dtype(weight, hidden.dtype)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        for begin in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(begin, begin + chunk_tokens)
            logits = _logits_from_target(hidden[rows], head, targets[rows])
            found, grad_logits = _losses_and_gradient(logits, targets[rows], None, native)
            losses[rows] = found.view(-1)
            if slopes is not None:
                product(grad_logits, head, out=slopes[rows])
        ctx.save_for_backward(slopes)
        return -losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (None if slopes is None else slopes * -grad[:, None].to(slopes.dtype)), None, None, None, None
