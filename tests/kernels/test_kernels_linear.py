"""Packed linear layers against numpy, at every format and instruction set of this processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from int8_rotation import group_of, rotated, rotation
from liuyi.kernels.library import INSTRUCTION_SETS, KernelsAbsent, KernelsError, kernels
from liuyi.kernels.linear import PackedLinear, aligned
from liuyi.kernels.parts import Part

Floats = NDArray[np.float32]

try:
    BEST = kernels().instruction_set
except KernelsAbsent as absent:
    pytest.skip(absent.message, allow_module_level=True)

SETS = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(BEST) + 1]
FORMATS = [("fp32", None), ("bf16", False), ("bf16", True), ("int8", None), ("int4", None)]
"""Names of formats, and whether bf16 rounds x."""

KINDS = [
    pytest.param(name, weight_format, rounds, id=f"{weight_format}{'-rounded-x' if rounds else ''}-{name}")
    for name in SETS
    for weight_format, rounds in FORMATS
]
each_kind: Callable[[Any], Any] = pytest.mark.parametrize(("instruction_set", "weight_format", "rounds_x"), KINDS)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 100), st.integers(1, 300), st.integers(0, 2**32 - 1))
"""Tokens, rows, columns, and a seed."""


def _to_bf16(x: Floats) -> Floats:
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().float().numpy()


def _bits(x: Floats) -> NDArray[np.uint16]:
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def _quantized_x(layer: PackedLinear, x: NDArray[np.float64], prepared: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What x [tokens, whole groups] became: whole numbers times a scale, each the nearest, the largest of a group 127.

    Read from the prepared rows, because numbers halfway between two may be rounded either way.
    """
    tokens, columns = x.shape
    group = group_of(columns) if layer.weight_format == "int8" else 32
    numbers = prepared[:, :columns].view(np.int8).reshape(tokens, -1, group).astype(np.float64)
    scales = prepared[:, columns : columns + 4 * (columns // group)].copy().view(np.float32)[:, :, None]
    groups = x.reshape(tokens, -1, group)
    np.testing.assert_allclose(scales, np.abs(groups).max(axis=2, keepdims=True) / 127, rtol=1e-5)
    assert (np.abs(numbers * scales - groups) <= 0.5001 * scales + 1e-30).all()
    return (numbers * scales).reshape(tokens, -1)


def _expected(layer: PackedLinear, rounds_x: bool | None, x: Floats) -> NDArray[np.float64]:
    columns = x.shape[1]
    if layer.weight_format == "int8":
        seen = rotated(_quantized_x(layer, rotated(x), layer.prepare(x)))[:, :columns]
    elif layer.weight_format == "int4":
        filled = np.pad(x.astype(np.float64), ((0, 0), (0, -columns % 32)))
        seen = _quantized_x(layer, filled, layer.prepare(x))[:, :columns]
    else:
        seen = (_to_bf16(x) if rounds_x else x).astype(np.float64)
    return seen @ layer.weights().astype(np.float64).T


def _near(y: Floats, exact: NDArray[np.float64], x: Floats, weights: Floats) -> None:
    """Within rounding of float32 sums, whose terms are no larger than those of |x|·|W|ᵀ."""
    size = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    assert (np.abs(y - exact) <= 1e-5 * size + 1e-30).all()


@each_kind
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES)
def test_products_of_any_shape(
    instruction_set: str, weight_format: str, rounds_x: bool | None, shape: tuple[int, int, int, int]
) -> None:
    tokens, rows, columns, seed = shape
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns), dtype=np.float32)
    bias = generator.standard_normal(rows, dtype=np.float32)
    x = generator.standard_normal((tokens, columns), dtype=np.float32)
    layer = PackedLinear(
        weight_format, [Part(weight, bias)], columns, rounds_x=rounds_x, instruction_set=instruction_set
    )
    exact = _expected(layer, rounds_x, x)
    y = layer.times(x)
    _near(y - bias, exact, np.abs(x) + 1, np.abs(layer.weights()) + 1)

    wide = np.full((tokens, rows + 3), 7.0, np.float32)
    layer.multiply(layer.prepare(x), wide, epilogue="add")
    assert np.array_equal(wide[:, :rows], y + np.float32(7))
    assert (wide[:, rows:] == 7).all()


@each_kind
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES)
def test_gate_and_up(
    instruction_set: str, weight_format: str, rounds_x: bool | None, shape: tuple[int, int, int, int]
) -> None:
    tokens, rows, columns, seed = shape
    generator = np.random.default_rng(seed)
    gate, up = (generator.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    x = generator.standard_normal((tokens, columns), dtype=np.float32)
    layer = PackedLinear(
        weight_format, [Part(gate), Part(up)], columns, gated=True, rounds_x=rounds_x, instruction_set=instruction_set
    )
    apart = [
        PackedLinear(weight_format, [Part(w)], columns, rounds_x=rounds_x, instruction_set=instruction_set).times(x)
        for w in (gate, up)
    ]
    both = layer.times(x)
    assert both.tobytes() == np.concatenate(apart, axis=1).tobytes()
    expected = apart[0].astype(np.float64) / (1 + np.exp(-apart[0].astype(np.float64))) * apart[1]
    np.testing.assert_allclose(layer.times(x, "swiglu"), expected, rtol=2e-6, atol=1e-30)


@each_kind
def test_a_result_does_not_depend_on_how_the_work_is_cut(
    instruction_set: str, weight_format: str, rounds_x: bool | None
) -> None:
    generator = np.random.default_rng(3)
    tokens, rows, columns = 300, 130, 610
    weight = generator.standard_normal((rows, columns), dtype=np.float32)
    x = generator.standard_normal((tokens, columns), dtype=np.float32)
    layer = PackedLinear(weight_format, [Part(weight)], columns, rounds_x=rounds_x, instruction_set=instruction_set)
    whole = layer.times(x)
    prepared = layer.prepare(x)
    for step in (1, 2, 3, 5, 7, 12, 13, 100):
        pieces = np.zeros_like(whole)
        for start in range(0, tokens, step):
            for panel in range(layer.panels):
                layer.multiply(prepared, pieces, tokens=(start, min(tokens, start + step)), panels=(panel, panel + 1))
        assert pieces.tobytes() == whole.tobytes()
    alone = np.concatenate([layer.times(x[token : token + 1]) for token in range(40)])
    assert alone.tobytes() == whole[:40].tobytes()


@pytest.mark.skipif(len(SETS) < 2, reason="one instruction set")
@pytest.mark.parametrize(("weight_format", "rounds_x"), [kind for kind in FORMATS if kind != ("bf16", True)])
def test_instruction_sets_give_the_same_bits(weight_format: str, rounds_x: bool | None) -> None:
    generator = np.random.default_rng(4)
    weight = generator.standard_normal((100, 777), dtype=np.float32)
    x = generator.standard_normal((70, 777), dtype=np.float32)
    results = [
        PackedLinear(weight_format, [Part(weight)], 777, rounds_x=rounds_x, instruction_set=name).times(x).tobytes()
        for name in SETS
    ]
    assert len(set(results)) == 1


@pytest.mark.skipif(BEST != "amx", reason="no AMX")
@pytest.mark.parametrize("epilogue", ["store", "add", "swiglu"])
def test_few_tokens_give_the_bits_of_the_matrix_unit(epilogue: str) -> None:
    """Other instructions multiply them, of numbers too small to be normal too, which the matrix unit takes for zero."""
    generator = np.random.default_rng(8)
    tokens, rows, columns = 40, 96, 200
    scale = np.exp2(generator.integers(-70, -50, (tokens, 1))).astype(np.float32)
    x = generator.standard_normal((tokens, columns), dtype=np.float32) * scale
    weight = generator.standard_normal((2 * rows, columns), dtype=np.float32)
    weight[:rows] *= np.exp2(generator.integers(-80, -60, (rows, 1))).astype(np.float32)
    weight[rows:] *= np.exp2(generator.integers(50, 70, (rows, 1))).astype(np.float32)
    x[:, ::7] *= np.float32(2.0**-70)
    layer = PackedLinear("bf16", [Part(weight[:rows]), Part(weight[rows:])], columns, gated=True)
    whole = aligned((tokens, rows if epilogue == "swiglu" else 2 * rows), np.float32)
    prepared = layer.prepare(x)
    layer.multiply(prepared, whole, epilogue=epilogue)
    few = np.zeros_like(whole)
    for start in range(tokens):
        layer.multiply(prepared, few, tokens=(start, start + 1), epilogue=epilogue)
    small = np.abs(whole[whole != 0]) < np.finfo(np.float32).tiny
    assert small.any() == (epilogue == "swiglu")
    assert (whole == 0).any() or epilogue == "add"
    assert few.tobytes() == whole.tobytes()


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES)
def test_packed_weights_are_near(shape: tuple[int, int, int, int]) -> None:
    """float32 exactly, bfloat16 as torch rounds, int8 (where it is rotated) and int4 within half a step of a group."""
    _, rows, columns, seed = shape
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns), dtype=np.float32)
    weight[0] = 0
    found = {name: PackedLinear(name, [Part(weight)], columns).weights() for name, _ in FORMATS}
    assert np.array_equal(found["fp32"], weight)
    assert np.array_equal(found["bf16"], _to_bf16(weight))
    group = group_of(columns)
    turned, found_turned = rotated(weight), rotated(found["int8"])
    if columns % 64:
        # The last group is cut off after it is rotated back.
        whole = (columns - 1) // group * group
        turned, found_turned = turned[:, :whole], found_turned[:, :whole]
        error = np.linalg.norm(found["int8"][:, whole:] - weight[:, whole:], axis=1)
        assert (error <= 0.505 * group**0.5 * np.linalg.norm(weight[:, whole:], axis=1) / 127).all()
    for start in range(0, turned.shape[1], group):
        exact, near = turned[:, start : start + group], found_turned[:, start : start + group]
        step = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert (np.abs(near - exact) <= 0.505 * step).all()
    for start in range(0, columns, 32):
        exact, near = weight[:, start : start + 32], found["int4"][:, start : start + 32]
        low, high = exact.min(axis=1), exact.max(axis=1)
        error = np.sqrt(np.mean((near - exact) ** 2, axis=1))
        assert (error <= 0.51 * (high - low) / 15 + 0.004 * np.abs(exact).max(axis=1)).all()


@each_kind
def test_float_weights_may_come_as_bfloat16(instruction_set: str, weight_format: str, rounds_x: bool | None) -> None:
    generator = np.random.default_rng(5)
    weight = _to_bf16(generator.standard_normal((70, 90), dtype=np.float32))
    x = generator.standard_normal((3, 90), dtype=np.float32)
    results = {
        PackedLinear(weight_format, [Part(values)], 90, rounds_x=rounds_x, instruction_set=instruction_set)
        .times(x)
        .tobytes()
        for values in (weight, _bits(weight))
    }
    assert len(results) == 1


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES)
def test_ready_numbers_are_taken_as_they_are(shape: tuple[int, int, int, int]) -> None:
    _, rows, columns, seed = shape
    generator = np.random.default_rng(seed)

    def floats(groups: int) -> Floats:
        return _to_bf16(generator.standard_normal((rows, groups), dtype=np.float32))

    def spread(values: Floats, group: int) -> Floats:
        return np.repeat(values, group, axis=1)[:, :columns]

    group, depth = group_of(columns), -(-columns // 64) * 64
    eight, scales = generator.integers(-127, 128, (rows, depth), dtype=np.int8), floats(depth // group)
    layer = PackedLinear("int8", [Part(eight, scales=_bits(scales))], columns)
    exact = rotated(eight * np.repeat(scales, group, axis=1))
    assert np.abs(layer.weights() - exact[:, :columns]).max() <= 1e-6 * np.abs(exact).max()

    four = generator.integers(0, 16, (rows, columns), dtype=np.uint8)
    even = np.pad(four, ((0, 0), (0, columns % 2)))
    packed = even[:, ::2] | even[:, 1::2] << 4
    scales, minima = floats(-(-columns // 32)), floats(-(-columns // 32))
    layer = PackedLinear("int4", [Part(packed, scales=_bits(scales), minima=_bits(minima))], columns)
    assert np.array_equal(layer.weights(), four * spread(scales, 32) + spread(minima, 32))


def test_int4_narrows_the_range_where_that_is_nearer() -> None:
    """One outlier in each group: the least squared error is not that of the full range."""
    generator = np.random.default_rng(6)
    weight = generator.standard_normal((64, 320), dtype=np.float32)
    weight[:, ::32] *= 2
    groups = weight.reshape(64, -1, 32)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    full = low + np.rint((groups - low) * (15 / (high - low))) * ((high - low) / 15)
    packed = PackedLinear("int4", [Part(weight)], 320).weights()
    assert np.linalg.norm(packed - weight) < 0.99 * np.linalg.norm(full.reshape(64, 320) - weight)


@pytest.mark.parametrize("instruction_set", SETS)
def test_the_largest_numbers_do_not_overflow(instruction_set: str) -> None:
    columns, group = 4096, 256
    x = np.zeros((5, columns), np.float32)
    x.reshape(5, -1, group)[:] = np.rint(127 * np.ones(group) @ rotation(group))  # Rotated, 127 in every column.
    for sign in (1, -1):
        eight = np.full((32, columns), 127 * sign, np.int8)
        ones = np.full((32, columns // group), _bits(np.ones((1, 1), np.float32))[0, 0])
        layer = PackedLinear("int8", [Part(eight, scales=ones)], columns, instruction_set=instruction_set)
        y = layer.times(x)
        assert (y == sign * 127 * 127 * columns).all()


def test_parts_that_do_not_fit_are_refused() -> None:
    weight = np.zeros((4, 64), np.float32)
    for part, message in (
        (Part(weight[:, :60]), "64 columns"),
        (Part(weight.astype(np.float64)), "not float64"),
        (Part(weight.astype(np.int8)), "scales None"),
        (Part(weight.astype(np.int8), scales=np.zeros((4, 2), np.uint16)), r"scales \[4, 2\]"),
        (Part(weight, bias=np.zeros(3, np.float32)), "bias"),
        (Part(weight, scales=np.zeros((4, 1), np.uint16)), "scales"),
    ):
        with pytest.raises(KernelsError, match=message):
            PackedLinear("int8", [part], 64)
    for weight_format in ("fp32", "bf16", "int4"):
        with pytest.raises(KernelsError, match="their own format"):
            PackedLinear(weight_format, [Part(weight.astype(np.int8), scales=np.zeros((4, 1), np.uint16))], 64)


def test_memory_is_aligned() -> None:
    assert all(aligned((3, columns), np.float32).ctypes.data % 64 == 0 for columns in range(1, 20))
