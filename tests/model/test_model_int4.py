"""int4 that is fitted to text: beside its definition in float64, and what it gains."""

from __future__ import annotations

import pytest
import torch
from tiny_models import MODELS, hf_model, our_model, relative
from torch import Tensor, nn

from liuyi.core.errors import ModelError
from liuyi.model.decoder import Decoder, Linear
from liuyi.model.int4 import fitted, nearest, packed, unpacked
from liuyi.model.moments import moments
from liuyi.model.quantize import quantize, widened_copy

TEXTS = [list(range(3, 60)), list(range(40, 5, -1)), [7, 7, 7]]


def inputs(columns: int, count: int = 400) -> Tensor:
    """Inputs of which each resembles the others, as those of a model do."""
    generator = torch.Generator().manual_seed(columns)
    few = torch.randn(count, max(1, columns // 4), generator=generator)
    return few @ torch.randn(few.shape[1], columns, generator=generator) + 0.3 * torch.randn(
        count, columns, generator=generator
    )


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def widened(numbers: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    columns = numbers.shape[1]
    spread = [each.float().repeat_interleave(32, dim=1)[:, :columns] for each in (scale, minimum)]
    return numbers.float() * spread[0] + spread[1]


def wanted_now(weight: Tensor, near: Tensor, at: int, moment: Tensor) -> Tensor:
    """What columns from `at` on should be, those before being what they are: the least squares of the damped moment."""
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(len(moment))
    fixed = near[:, :at].double() - weight[:, :at].double()
    return weight[:, at:].double() - fixed @ damped[:at, at:] @ torch.linalg.inv(damped[at:, at:])


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_each_column_is_the_nearest_to_what_those_before_leave_to_it(columns: int) -> None:
    weight, x = matrix(12, columns), inputs(columns)
    moment = x.T @ x
    numbers, scale, minimum = fitted(weight, moment)
    near = widened(numbers, scale, minimum)
    for at in range(columns):
        group = at // 32
        wanted = wanted_now(weight, near, at, moment)
        # A group of one column has no range.
        unit = scale[:, group].double()
        steps = torch.where(unit > 0, (wanted[:, 0] - minimum[:, group].double()) / unit, 0).clamp(0, 15)
        assert (steps - numbers[:, at]).abs().max() < 0.5 + 1e-3
        if at % 32 == 0:
            _, scales, minima = nearest(wanted[:, :32].float())
            assert torch.allclose(scales[:, 0].float(), scale[:, group].float(), rtol=0.2)
            assert torch.allclose(minima[:, 0].float(), minimum[:, group].float(), rtol=0.2, atol=0.05)


@pytest.mark.parametrize("columns", [32, 70, 256])
def test_products_are_nearer_than_those_of_the_nearest_numbers(columns: int) -> None:
    weight, x = matrix(40, columns), inputs(columns)
    exact = x @ weight.T
    simple, better = (widened(*made) for made in (nearest(weight), fitted(weight, x.T @ x)))
    assert relative(x @ better.T, exact) < 0.8 * relative(x @ simple.T, exact)


def test_inputs_that_have_nothing_in_common_leave_the_nearest() -> None:
    weight = matrix(9, 77)
    for moment in (torch.eye(77) * 5, torch.zeros(77, 77)):
        for one, other in zip(fitted(weight, moment), nearest(weight), strict=True):
            assert torch.equal(one, other)


def test_an_input_that_never_comes_does_no_harm() -> None:
    weight, x = matrix(9, 64), inputs(64)
    x[:, 5] = 0
    made = widened(*fitted(weight, x.T @ x))
    assert made.isfinite().all()
    assert (made[:, 5] - weight[:, 5]).abs().max() < 0.3


@pytest.mark.parametrize("columns", [1, 2, 7, 64])
def test_two_numbers_to_a_byte(columns: int) -> None:
    numbers = torch.randint(0, 16, (5, columns), dtype=torch.uint8)
    assert packed(numbers).shape == (5, (columns + 1) // 2)
    assert torch.equal(unpacked(packed(numbers), columns), numbers)


def summed(model: Decoder) -> dict[str, Tensor]:
    """Σ x·xᵀ of every matrix of the layers, over whole forward passes."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        def look(_: nn.Module, given: tuple[Tensor]) -> None:
            for x in given[0].flatten(0, -2).float():
                sums[name] = sums.get(name, 0) + torch.outer(x, x)

        handles.append(model.get_submodule(name).register_forward_pre_hook(look))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in model.named_modules():
        if isinstance(module, Linear) and ".layers." in name:
            watch(name)
    with torch.inference_mode():
        for text in TEXTS:
            model(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_what_the_model_reads(name: str) -> None:
    model = our_model(hf_model(name))
    found = {name: moment for layer in moments(model, TEXTS) for name, moment in layer.items()}
    expected = summed(model)
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(found[name], moment, rtol=1e-3, atol=1e-3 * float(moment.abs().max()))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_nearer_on_such_text(dtype: torch.dtype) -> None:
    model = our_model(hf_model("smollm2")).to(dtype)
    tokens = torch.tensor([TEXTS[0]])

    def logits(of: Decoder) -> Tensor:
        with torch.inference_mode():
            return of.logits(of(tokens)).float()

    wide = our_model(hf_model("smollm2"))
    wide.load_state_dict(model.state_dict())
    exact = logits(wide)
    simple, better = (logits(widened_copy(quantize(model, "int4", texts))) for texts in ((), TEXTS))
    assert relative(better, exact) < 0.9 * relative(simple, exact)


def test_a_model_that_computes_no_numbers_is_told_so() -> None:
    model = our_model(hf_model("smollm2"))
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="no number") as raised:
        quantize(model, "int4", TEXTS)
    assert "layers.0.mlp" in raised.value.where


def test_int8_takes_no_texts() -> None:
    with pytest.raises(ModelError, match="int8 is not fitted"):
        quantize(our_model(hf_model("smollm2")), "int8", TEXTS)
