"""A decoder in native memory: packed weights, a paged cache of keys and values, one call a step.

    model = NativeModel(shape, windows=[0] * 30, kv="bf16", blocks=1024)
    model.pack("qkv", 0, "int8", [Part(q), Part(k), Part(v)])       # and every other matrix, norm, the embedding
    logits = np.empty((rows, shape.vocab), np.float32)
    model.forward(step, logits.ctypes.data)

All arrays are numpy's; weights are copied as they are packed. ctypes gives up the GIL during the calls.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.machine import cores
from liuyi.kernels.library import BatchView, KernelsError, Library, ModelArguments, Source, kernels

WEIGHT_FORMATS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
KV_FORMATS = {"fp32": 0, "bf16": 1, "int8": 2}
MATRICES = {"qkv": 0, "output": 1, "gate_up": 2, "down": 3, "head": 4}
VECTORS = {"attention_norm": 0, "mlp_norm": 1, "q_norm": 2, "k_norm": 3, "final_norm": 4}

Array = NDArray[Any]


@dataclass(frozen=True)
class NativeShape:
    """Sizes of a decoder."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float


@dataclass(frozen=True)
class Part:
    """A matrix, or one of several stacked top to bottom.

    `values` [rows, columns] is float32, bfloat16 as uint16 bits, or int8 with `scales` [rows, groups of 64 columns] as
    bfloat16 bits. `bias` [rows] is float32.
    """

    values: Array
    bias: Array | None = None
    scales: Array | None = None


class NativeModel:
    """Weights and cache of one decoder. Used by one thread at a time, in the process that made it."""

    def __init__(
        self,
        shape: NativeShape,
        *,
        windows: Sequence[int],
        kv: str = "bf16",
        blocks: int,
        threads: int | None = None,
        library: Library | None = None,
    ) -> None:
        """`windows[layer]` is how many keys a query sees, itself included, 0 for all. `kv` is fp32, bf16 or int8;
        `threads` all cores of this process by default.

        Raises KernelsAbsent without the native library, KernelsError for sizes that make no sense.
        """
        self.library = library or kernels()
        self.shape = shape
        if kv not in KV_FORMATS:
            raise KernelsError(f"there is no format '{kv}' of keys and values", hint=f"known: {', '.join(KV_FORMATS)}")
        if len(windows) != shape.layers:
            raise KernelsError(f"{len(windows)} windows for {shape.layers} layers")
        kept = np.ascontiguousarray(windows, dtype=np.int32)
        arguments = ModelArguments(
            *(shape.vocab, shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads),
            *(shape.head_dim, shape.norm_eps, KV_FORMATS[kv], blocks, threads or cores(), kept.ctypes.data),
        )
        functions = self.library.functions
        self._handle = functions.liuyi_model_new(ctypes.byref(arguments), self.library.instruction_set.encode())
        if not self._handle:
            raise KernelsError(self.library.reason())
        self.close = weakref.finalize(self, functions.liuyi_model_free, self._handle)
        """Gives the memory back, as soon as it is called or the object is dropped."""
        self.block_bytes = int(functions.liuyi_model_block_bytes(self._handle))

    @property
    def weight_bytes(self) -> int:
        """Packed weights, without an embedding that is only looked up."""
        return int(self.library.functions.liuyi_model_weight_bytes(self._open()))

    def pack(self, matrix: str, layer: int, fmt: str, parts: Sequence[Part]) -> None:
        """Pack the parts into a matrix of the layer (any for the head). Raises KernelsError if they do not fit."""
        kept: list[Array] = []  # Arrays must live until the call is over.
        sources = (Source * len(parts))()
        columns = self.shape.hidden
        if matrix == "output":
            columns = self.shape.heads * self.shape.head_dim
        elif matrix == "down":
            columns = self.shape.intermediate
        for source, part in zip(sources, parts, strict=True):
            values = np.ascontiguousarray(part.values)
            if values.ndim != 2 or values.shape[1] != columns:
                raise KernelsError(f"the matrix '{matrix}' has {columns} columns, not {list(values.shape)}")
            source.format = _format_of(values)
            source.rows = values.shape[0]
            source.values = _keep(kept, values)
            if part.scales is not None:
                if part.scales.shape != (values.shape[0], -(-columns // 64)) or part.scales.dtype != np.uint16:
                    raise KernelsError(f"scales {list(part.scales.shape)} do not fit weights {list(values.shape)}")
                source.scales = _keep(kept, np.ascontiguousarray(part.scales))
            if part.bias is not None:
                if part.bias.shape != (values.shape[0],):
                    raise KernelsError(f"a bias {list(part.bias.shape)} does not fit weights {list(values.shape)}")
                source.bias = _keep(kept, np.ascontiguousarray(part.bias, dtype=np.float32))
        functions = self.library.functions
        self.library.check(
            functions.liuyi_model_pack(self._open(), MATRICES[matrix], layer, WEIGHT_FORMATS[fmt], sources, len(parts))
        )

    def set_vector(self, vector: str, layer: int, values: Array) -> None:
        """Set the weights of a norm (of any layer for the final one). Raises KernelsError for another length."""
        kept = np.ascontiguousarray(values, dtype=np.float32)
        self.library.check(
            self.library.functions.liuyi_model_set_vector(
                self._open(), VECTORS[vector], layer, kept.ctypes.data, kept.size
            )
        )

    def set_embedding(self, values: Array) -> None:
        """Set the embedding [vocab, hidden], float32 or bfloat16 as uint16 bits."""
        kept = np.ascontiguousarray(values)
        if kept.shape != (self.shape.vocab, self.shape.hidden):
            raise KernelsError(f"an embedding {list(kept.shape)} for a vocabulary of {self.shape.vocab}")
        functions = self.library.functions
        self.library.check(functions.liuyi_model_set_embedding(self._open(), _format_of(kept), kept.ctypes.data))

    def forward(self, batch: BatchView, result: int, *, hidden: bool = False) -> None:
        """Compute a batch; float32 logits [rows, vocab], or hidden states [rows, hidden], go to the address `result`.

        Raises KernelsError if the batch is not possible; nothing has changed then.
        """
        self.library.check(
            self.library.functions.liuyi_model_forward(self._open(), ctypes.byref(batch), int(hidden), result)
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of keys and values, (from, to), one after the other."""
        if pairs:
            kept = np.ascontiguousarray(pairs, dtype=np.int32)
            functions = self.library.functions
            self.library.check(functions.liuyi_model_copy_blocks(self._open(), kept.ctypes.data, len(pairs)))

    def _open(self) -> int:
        if not self.close.alive:
            raise KernelsError("the model is closed")
        return int(self._handle)


def _format_of(values: Array) -> int:
    names = {"float32": "fp32", "uint16": "bf16", "int8": "int8"}
    if values.dtype.name not in names:
        raise KernelsError(f"weights are float32, bfloat16 bits or int8, not {values.dtype.name}")
    return WEIGHT_FORMATS[names[values.dtype.name]]


def _keep(kept: list[Array], values: Array) -> int:
    kept.append(values)
    return int(values.ctypes.data)
