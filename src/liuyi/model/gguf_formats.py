"""The number formats of GGUF tensors: blocks of bytes to float32 and, for those that are written, back.

    form = FORMATS[12]                              # Q4_K
    values = form.widen(data)                       # float32, the same bits as ggml's
    data = by_name("Q8_0").pack(values)

Layouts as in ggml's `ggml-common.h`, named by the fields of a block: `d` scales the whole numbers, `m` shifts them,
and both are themselves scaled in small integers for each part of a block in the K formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 1 << 21
"""Values that are converted at once: what is beside a tensor in memory stays small."""


@dataclass(frozen=True)
class Format:
    """How one kind of tensor is laid out: `values` numbers along a row in each block."""

    number: int
    name: str
    values: int
    layout: np.dtype[Any]
    _widen: Callable[[Array], Array]
    _pack: Callable[[Floats], Array] | None = None

    @property
    def block_bytes(self) -> int:
        """Size of a block."""
        return self.layout.itemsize

    @property
    def writable(self) -> bool:
        """Whether tensors can be written in it."""
        return self._pack is not None

    def bytes_for(self, size: int) -> int:
        """Bytes that so many values take, a multiple of the block."""
        return size // self.values * self.block_bytes

    def widen(self, data: Bytes | memoryview) -> Floats:
        """The float32 values of whole blocks, flat."""
        blocks = np.frombuffer(data, self.layout)
        out = np.empty((len(blocks), self.values), np.float32)
        step = max(1, _AT_ONCE // self.values)
        for at in range(0, len(blocks), step):
            out[at : at + step] = self._widen(blocks[at : at + step]).reshape(-1, self.values)
        return out.reshape(-1)

    def pack(self, values: Floats) -> Bytes:
        """The bytes of float32 values [rows, columns] or [columns], whose rows are multiples of the block."""
        if self._pack is None:
            raise ValueError(f"{self.name} is not written")
        flat = np.ascontiguousarray(values, np.float32).reshape(-1, self.values)
        out = np.empty(len(flat), self.layout)
        step = max(1, _AT_ONCE // self.values)
        for at in range(0, len(flat), step):
            out[at : at + step] = self._pack(flat[at : at + step])
        return out.view(np.uint8)


def by_name(name: str) -> Format:
    """A format by its name in ggml, such as `Q8_0`."""
    return next(form for form in FORMATS.values() if form.name == name)


def _bits(packed: Array, width: int, run: int) -> Array:
    """Unpack small numbers [blocks, numbers] from bytes [blocks, bytes].

    Of each run of bytes first come the lowest `width` bits of all its bytes, then the next ones.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[None, None, :, None]
    parts = packed.reshape(len(packed), -1, 1, run) >> shifts
    return (parts & np.uint8((1 << width) - 1)).reshape(len(packed), -1)


def _f(values: Array) -> Floats:
    return values.astype(np.float32)


def _scaled(blocks: Array, scales: Array, numbers: Array) -> Array:
    """d · scale · number, a scale for each equal part of a block."""
    per_part = _f(blocks["d"])[:, None] * _f(scales)
    return per_part[:, :, None] * _f(numbers).reshape(*scales.shape, -1)


def _scaled_and_shifted(blocks: Array, scales: Array, shifts: Array, numbers: Array) -> Array:
    """d · scale · number − m · shift."""
    values: Array = _scaled(blocks, scales, numbers)
    values -= (_f(blocks["m"])[:, None] * _f(shifts))[:, :, None]
    return values


def _column(blocks: Array, name: str) -> Floats:
    return _f(blocks[name])[:, None]


def _bf16(blocks: Array) -> Array:
    # A bfloat16 is the upper half of a float32.
    return (blocks["x"].astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Array) -> Array:
    return _column(blocks, "d") * (_f(_bits(blocks["low"], 4, 16)) - 8)


def _q4_1(blocks: Array) -> Array:
    return _column(blocks, "d") * _f(_bits(blocks["low"], 4, 16)) + _column(blocks, "m")


def _five_bits(blocks: Array) -> Array:
    numbers: Array = _bits(blocks["low"], 4, 16) | _bits(blocks["high"], 1, 1) << np.uint8(4)
    return numbers


def _q5_0(blocks: Array) -> Array:
    return _column(blocks, "d") * (_f(_five_bits(blocks)) - 16)


def _q5_1(blocks: Array) -> Array:
    return _column(blocks, "d") * _f(_five_bits(blocks)) + _column(blocks, "m")


def _q8_0(blocks: Array) -> Array:
    return _column(blocks, "d") * _f(blocks["x"])


def _q2_k(blocks: Array) -> Array:
    scales, shifts = blocks["scales"] & np.uint8(15), blocks["scales"] >> np.uint8(4)
    return _scaled_and_shifted(blocks, scales, shifts, _bits(blocks["low"], 2, 32))


def _q3_k(blocks: Array) -> Array:
    scales = _bits(blocks["scales"][:, :8], 4, 8) | _bits(blocks["scales"][:, 8:], 2, 4) << np.uint8(4)
    # The third bit is kept inverted: where it is not set, 4 is taken off.
    lowered = 4 * (1 - _bits(blocks["high"], 1, 32).astype(np.int8))
    return _scaled(blocks, scales.astype(np.int8) - 32, _bits(blocks["low"], 2, 32).astype(np.int8) - lowered)


def _k_scales(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight shifts of six bits each from 12 bytes: the last four of both are spread over all."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, last & 15 | first >> 2 & 48), axis=1)
    return scales, np.concatenate((second & 63, last >> 4 | second >> 2 & 48), axis=1)


def _q4_k(blocks: Array) -> Array:
    return _scaled_and_shifted(blocks, *_k_scales(blocks["scales"]), _bits(blocks["low"], 4, 32))


def _q5_k(blocks: Array) -> Array:
    numbers = _bits(blocks["low"], 4, 32) | _bits(blocks["high"], 1, 32) << np.uint8(4)
    return _scaled_and_shifted(blocks, *_k_scales(blocks["scales"]), numbers)


def _q6_k(blocks: Array) -> Array:
    numbers = _bits(blocks["low"], 4, 64) | _bits(blocks["high"], 2, 32) << np.uint8(4)
    return _scaled(blocks, blocks["scales"], numbers.astype(np.int8) - 32)


# Steps of the formats whose levels are not evenly spaced.
_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _iq4_nl(blocks: Array) -> Array:
    return _column(blocks, "d") * _f(_LEVELS[_bits(blocks["low"], 4, 16)])


def _iq4_xs(blocks: Array) -> Array:
    scales = _bits(blocks["scales"], 4, 1) | _bits(blocks["high"], 2, 1) << np.uint8(4)
    return _scaled(blocks, scales.astype(np.int8) - 32, _LEVELS[_bits(blocks["low"], 4, 16)])


def _pack_bf16(values: Floats) -> Array:
    """Rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 64
    return _fields(_BF16, x=np.where(np.isnan(values), quiet, rounded).astype(np.uint16)[:, 0])


def _pack_q8_0(values: Floats) -> Array:
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    steps = values * _inverse(d)
    # Ties away from zero, as C's roundf.
    size = np.abs(steps)
    whole = np.floor(size)
    rounded = np.sign(steps) * (whole + np.floor(2 * (size - whole)))
    return _fields(_Q8_0, d=d[:, 0], x=rounded)


def _pack_q4_0(values: Floats) -> Array:
    # The largest value, with its sign, is -8: the one end of the range that has no counterpart.
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-8)
    steps = np.clip(np.trunc(values * _inverse(d) + np.float32(8.5)), 0, 15).astype(np.uint8)
    return _fields(_Q4_0, d=d[:, 0], low=steps[:, :16] | steps[:, 16:] << np.uint8(4))


def _inverse(d: Floats) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _fields(layout: np.dtype[Any], **columns: Array) -> Array:
    blocks = np.empty(len(next(iter(columns.values()))), layout)
    for name, column in columns.items():
        blocks[name] = column
    return blocks


def _layout(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_BF16 = _layout(("x", "<u2"))
_Q8_0 = _layout(("d", "<f2"), ("x", "i1", 32))
_Q4_0 = _layout(("d", "<f2"), ("low", "u1", 16))
_HALVES = (("d", "<f2"), ("m", "<f2"))
_K_SCALES = (*_HALVES, ("scales", "u1", 12))

FORMATS = {
    form.number: form
    for form in (
        Format(0, "F32", 1, _layout(("x", "<f4")), lambda blocks: blocks["x"], lambda x: x.view([("x", "<f4")])[:, 0]),
        Format(
            *(1, "F16", 1, _layout(("x", "<f2")), lambda blocks: _f(blocks["x"])),
            lambda x: x.astype("<f2").view([("x", "<f2")])[:, 0],
        ),
        Format(2, "Q4_0", 32, _Q4_0, _q4_0, _pack_q4_0),
        Format(3, "Q4_1", 32, _layout(*_HALVES, ("low", "u1", 16)), _q4_1),
        Format(6, "Q5_0", 32, _layout(("d", "<f2"), ("high", "u1", 4), ("low", "u1", 16)), _q5_0),
        Format(7, "Q5_1", 32, _layout(*_HALVES, ("high", "u1", 4), ("low", "u1", 16)), _q5_1),
        Format(8, "Q8_0", 32, _Q8_0, _q8_0, _pack_q8_0),
        Format(10, "Q2_K", 256, _layout(("scales", "u1", 16), ("low", "u1", 64), *_HALVES), _q2_k),
        Format(
            *(11, "Q3_K", 256),
            *(_layout(("high", "u1", 32), ("low", "u1", 64), ("scales", "u1", 12), ("d", "<f2")), _q3_k),
        ),
        Format(12, "Q4_K", 256, _layout(*_K_SCALES, ("low", "u1", 128)), _q4_k),
        Format(13, "Q5_K", 256, _layout(*_K_SCALES, ("high", "u1", 32), ("low", "u1", 128)), _q5_k),
        Format(
            *(14, "Q6_K", 256),
            *(_layout(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")), _q6_k),
        ),
        Format(20, "IQ4_NL", 32, _layout(("d", "<f2"), ("low", "u1", 16)), _iq4_nl),
        Format(
            *(23, "IQ4_XS", 256),
            *(_layout(("d", "<f2"), ("high", "u1", 2), ("scales", "u1", 4), ("low", "u1", 128)), _iq4_xs),
        ),
        Format(30, "BF16", 1, _BF16, _bf16, _pack_bf16),
    )
}
"""Every format that is read, by its number in the file."""
