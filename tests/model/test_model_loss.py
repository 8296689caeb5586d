"""Chunked cross-entropy equals the formula, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from tiny_models import relative
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from liuyi.model.loss import IGNORED, linear_cross_entropy, linear_cross_entropy_reference, token_logprobs

TOKENS, HIDDEN, VOCAB = 50, 12, 37


def _case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).requires_grad_()
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    weights = torch.randn(TOKENS, generator=generator)
    return hidden, weight, targets, weights


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000, None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0, 20, 50])
def test_value_and_gradients_are_the_formula_s(chunk: int | None, weighted: bool, ignored: int) -> None:
    hidden, weight, targets, weights = _case()
    targets[torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))[:ignored]] = IGNORED
    token_weights = weights if weighted else None
    expected = linear_cross_entropy_reference(hidden, weight, targets, token_weights)
    expected_grads = torch.autograd.grad(expected * 3, (hidden, weight))
    total = linear_cross_entropy(hidden, weight, targets, token_weights, chunk_tokens=chunk)
    grads = torch.autograd.grad(total * 3, (hidden, weight))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets, weights = (
        tensor.detach().double() if tensor.is_floating_point() else tensor for tensor in _case()
    )
    targets[::4] = IGNORED

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        # The sum is kept in float32, so differences need a wide step.
        return linear_cross_entropy(hidden, weight, targets, weights, chunk_tokens=13)

    hidden, weight = hidden[:12].requires_grad_(), weight.requires_grad_()
    targets, weights = targets[:12], weights[:12]
    assert gradcheck(loss, (hidden, weight), eps=1e-2, atol=2e-3, rtol=1e-2)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets, _ = _case()
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert weight.grad is None
    hidden.grad = None
    linear_cross_entropy(hidden.detach(), weight, targets).backward()
    assert hidden.grad is None


def test_without_gradients_nothing_is_multiplied_for_them() -> None:
    hidden, weight, targets, _ = _case()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        linear_cross_entropy(hidden, weight, targets)
    assert counted.get_total_flops() == 2 * TOKENS * HIDDEN * VOCAB


def test_in_bfloat16_the_weight_s_gradient_is_summed_in_float32() -> None:
    hidden, weight, targets, _ = _case(torch.bfloat16)
    linear_cross_entropy(hidden, weight, targets, chunk_tokens=5).backward()
    exact_hidden, exact_weight, _, _ = _case()
    linear_cross_entropy_reference(exact_hidden, exact_weight, targets).backward()
    assert weight.grad is not None
    assert hidden.grad is not None
    assert (weight.grad.dtype, hidden.grad.dtype) == (torch.float32, torch.bfloat16)
    assert relative(weight.grad, exact_weight.grad) < 0.02
    assert relative(hidden.grad.float(), exact_hidden.grad) < 0.02


def test_a_confident_model_s_loss_does_not_vanish_or_overflow() -> None:
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    total = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    assert total.item() == pytest.approx(400.0)
    total.backward()
    assert torch.isfinite(weight.grad).all()


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, targets, _ = _case()
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("chunk", [1, 7, 1000, None])
def test_logprobs_and_any_loss_of_them(chunk: int | None) -> None:
    hidden, weight, targets, weights = _case()
    targets[3:9] = IGNORED
    logprobs = functional.log_softmax(hidden @ weight.T, dim=-1)
    expected = torch.where(targets == IGNORED, 0.0, logprobs.gather(1, targets.clamp(min=0)[:, None])[:, 0])
    ours = token_logprobs(hidden, weight, targets, chunk_tokens=chunk)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(functional.logsigmoid(ours * weights).sum(), (hidden, weight)),
        torch.autograd.grad(functional.logsigmoid(expected * weights).sum(), (hidden, weight), retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(token_logprobs(hidden, weight, targets, chunk_tokens=chunk), ours)
    frozen = token_logprobs(hidden, weight.detach(), targets, chunk_tokens=chunk)
    torch.testing.assert_close(frozen, expected)
    torch.testing.assert_close(
        torch.autograd.grad(functional.logsigmoid(frozen * weights).sum(), hidden),
        torch.autograd.grad(functional.logsigmoid(expected * weights).sum(), hidden),
    )


@pytest.mark.parametrize("trained", [False, True])
def test_logprobs_of_large_bfloat16_logits_are_those_of_unrounded_ones(trained: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    # Every hidden state has the same large entry, every row of the head, too, as in a model with logits about 24.
    hidden, weight = (torch.randn(count, 64, generator=generator) / 4 for count in (96, 512))
    hidden[:, 0], weight[:, 0] = 6.0, 4.0
    weight = weight.bfloat16().float().requires_grad_(trained)
    rounded = hidden.bfloat16().requires_grad_()
    targets = torch.randint(512, (96,), generator=generator)
    targets[:4] = IGNORED
    exact_hidden, exact_weight = (one.detach().float().requires_grad_() for one in (rounded, weight))
    logprobs = functional.log_softmax(exact_hidden @ exact_weight.T, dim=-1)
    expected = torch.where(targets == IGNORED, 0.0, logprobs.gather(1, targets.clamp(min=0)[:, None])[:, 0])

    ours = token_logprobs(rounded, weight, targets, chunk_tokens=40)

    # Half of bfloat16's step is 0.06 at 24.
    torch.testing.assert_close(ours, expected, atol=0.005, rtol=0.0)
    functional.logsigmoid(ours).sum().backward()
    functional.logsigmoid(expected).sum().backward()
    assert rounded.grad is not None
    assert exact_hidden.grad is not None
    # The entry that the rows of the head share has a gradient of rounding alone.
    assert relative(rounded.grad.float()[:, 1:], exact_hidden.grad[:, 1:]) < 0.02
    if trained:
        assert weight.grad is not None
        assert exact_weight.grad is not None
        assert relative(weight.grad, exact_weight.grad) < 0.02
