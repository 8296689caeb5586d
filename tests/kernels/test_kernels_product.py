"""The matrix unit's products against float64: both operands either way, edges, and any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liuyi.kernels.training import TrainingKernels, training_kernels
from liuyi.model.products import linear, product


@pytest.fixture
def native() -> TrainingKernels:
    found = training_kernels()
    if found is None or not found.has_amx:
        pytest.skip("no AMX")
    return found


def _random(rows: int, columns: int, seed: int, turned: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if turned else (rows, columns)
    values = torch.randn(shape, generator=generator).bfloat16()
    return values.T if turned else values


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 1, 1), (32, 32, 32), (37, 45, 51), (100, 1024, 64), (64, 2100, 700), (700, 96, 64)],
)
def test_agrees_with_float64(
    native: TrainingKernels, rows: int, inner: int, columns: int, turned: tuple[bool, bool]
) -> None:
    left, right = _random(rows, inner, 1, turned[0]), _random(inner, columns, 2, turned[1])
    out = torch.full((rows, columns + 5), 7.0, dtype=torch.bfloat16)
    native.product(left, right, out[:, :columns])
    exact = left.double() @ right.double()
    # Half a unit of bfloat16's last place, and float32's rounding of a sum of so many terms.
    bound = exact.abs() * 2**-8 + inner**0.5 * 1e-5
    assert ((out[:, :columns].double() - exact).abs() <= bound).all()
    assert (out[:, columns:] == 7.0).all(), "written beyond the end of its rows"


@pytest.mark.parametrize("turned", [(False, True), (True, False)])
def test_large_results_agree_with_float64_too(native: TrainingKernels, turned: tuple[bool, bool]) -> None:
    """More than the caches hold, in lines of them, and edges that are none."""
    left, right = _random(1100, 40, 1, turned[0]), _random(40, 1020, 2, turned[1])
    out = torch.full((1100, 1056), 7.0, dtype=torch.bfloat16)
    native.product(left, right, out[:, :1020])
    exact = left.double() @ right.double()
    assert ((out[:, :1020].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()
    assert (out[:, 1020:] == 7.0).all(), "written beyond the end of its rows"


def test_is_the_same_with_any_number_of_threads(native: TrainingKernels) -> None:
    left, right = _random(300, 3000, 1), _random(3000, 260, 2, turned=True)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(product(left, right))
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_passes_on_what_is_no_number(native: TrainingKernels) -> None:
    left, right = _random(40, 64, 1), _random(64, 40, 2)
    left[3, 5] = float("nan")
    made = product(left, right)
    assert made.isnan().all(dim=1).nonzero().tolist() == [[3]]
    assert made.isnan().any(dim=1).nonzero().tolist() == [[3]]


def test_into_a_transposed_matrix() -> None:
    left, right = _random(40, 64, 1), _random(64, 48, 2)
    memory = torch.full((48, 41), 7.0, dtype=torch.bfloat16)
    product(left, right, out=memory[:, :40].T)
    torch.testing.assert_close(memory[:, :40].T, product(left, right))
    assert (memory[:, 40:] == 7.0).all()


def test_without_rows_or_terms() -> None:
    assert product(_random(0, 8, 1), _random(8, 4, 2)).shape == (0, 4)
    assert product(_random(4, 0, 1), _random(0, 3, 2)).eq(0).all()


def test_gradients_of_linear() -> None:
    x, weight = _random(6 * 40, 96, 1).view(6, 40, 96), _random(70, 96, 2)
    grad = _random(6 * 40, 70, 3).view(6, 40, 70)
    y = linear(x.requires_grad_(), weight.requires_grad_())
    of_x, of_weight = torch.autograd.grad(y, (x, weight), grad)
    wide = grad.flatten(0, 1).double()
    torch.testing.assert_close(of_x.flatten(0, 1).double(), wide @ weight.double(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(of_weight.double(), wide.T @ x.flatten(0, 1).double(), rtol=1e-2, atol=1e-2)
