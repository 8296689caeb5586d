"""Number formats of GGUF, bit for bit against the format's own library."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from liuyi.model.gguf_formats import FORMATS, Format, by_name

Kind = gguf.GGMLQuantizationType
READ = [form.name for form in FORMATS.values()]
WRITTEN = [form.name for form in FORMATS.values() if form.writable]


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.uint32)


def _random_blocks(form: Format, count: int) -> np.ndarray:
    """Any bytes are blocks, but for scales, which are finite numbers in a tensor."""
    chance = np.random.default_rng(1)
    blocks = np.frombuffer(chance.bytes(count * form.block_bytes), form.layout).copy()
    for name in form.layout.names or ():
        if form.layout[name].kind == "f":
            blocks[name] = chance.normal(size=count)
    return blocks.view(np.uint8)


@pytest.mark.parametrize("name", READ)
def test_blocks_are_widened_as_by_the_format_s_own_library(name: str) -> None:
    form = by_name(name)
    assert (form.number, form.values, form.block_bytes) == (Kind[name], *gguf.GGML_QUANT_SIZES[Kind[name]])
    data = _random_blocks(form, 999)
    if name == "BF16":
        data = gguf.quants.quantize(np.random.default_rng(2).normal(size=999).astype(np.float32), Kind.BF16)
    theirs = gguf.quants.dequantize(data.reshape(-1, form.block_bytes), Kind[name])
    ours = form.widen(data)
    # A zero may have the other sign: -0 · 5 or -(0 · 5).
    assert np.array_equal(ours, theirs.ravel())
    assert np.array_equal(_bits(ours + 0.0), _bits(theirs.ravel() + 0.0))


def _values(rows: int, columns: int) -> np.ndarray:
    chance = np.random.default_rng(3)
    values = chance.normal(size=(rows, columns)) * 10.0 ** chance.integers(-6, 3, size=(rows, 1))
    values[0] = 0
    values[1] = np.repeat(np.arange(columns // 8) - 5, 8)
    values[2, ::2] = 0
    values[3] = 1e-9
    return values.astype(np.float32)


@pytest.mark.parametrize("name", WRITTEN)
def test_values_are_packed_as_by_the_format_s_own_library(name: str) -> None:
    values, form = _values(300, 96), by_name(name)
    packed = form.pack(values)
    theirs = gguf.quants.quantize(values, Kind[name])
    assert packed.tobytes() == theirs.tobytes()
    assert len(packed) == form.bytes_for(values.size)
    # Half a step, and the rounding of the step itself to half precision.
    most = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254 + 2**-11, "Q4_0": 1 / 8 + 2**-11}[name]
    back, blocks = form.widen(packed).reshape(-1, 32), values.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    assert (np.abs(back - blocks) <= 1.0001 * most * largest)[largest[:, 0] > 0.01].all()


def test_large_tensors_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, form = _values(40, 64), by_name("Q8_0")
    whole = form.pack(values)
    monkeypatch.setattr("liuyi.model.gguf_formats._AT_ONCE", 100)
    assert form.pack(values).tobytes() == whole.tobytes()
    assert np.array_equal(form.widen(whole), by_name("Q8_0").widen(memoryview(whole.tobytes())))


def test_not_a_number_stays_one_in_bfloat16() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 3.4e38], np.float32)
    odd = np.append(odd, np.array([0x7F800001], np.uint32).view(np.float32))
    assert by_name("BF16").pack(odd).tobytes() == gguf.quants.quantize(odd, Kind.BF16).tobytes()


def test_what_is_only_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="Q4_K is not written"):
        by_name("Q4_K").pack(np.zeros((1, 256), np.float32))
