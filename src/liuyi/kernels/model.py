"""A decoder in native memory: packed weights, a paged cache of keys and values, one call a step.

    model = NativeModel(shape, windows=[0] * 30, kv="bf16", blocks=1024)
    model.pack("qkv", 0, "int8", [Part(q), Part(k), Part(v)])       # and every other matrix, norm, the embedding
    logits = np.empty((rows, shape.vocab), np.float32)
    model.forward(step, logits.ctypes.data)

All arrays are numpy's; weights are copied as they are packed. ctypes gives up the GIL during the calls.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liuyi.core.cores import cores
from liuyi.kernels.draws import DRAW, SCORE
from liuyi.kernels.library import BatchView, KernelsError, Library, ModelArguments, kernels
from liuyi.kernels.parts import WEIGHT_FORMATS, Array, Part, Sources

KV_FORMATS = {"fp32": 0, "bf16": 1, "int8": 2}
MATRICES = {"qkv": 0, "output": 1, "gate_up": 2, "down": 3, "head": 4}
OUTPUTS = {"logits": 0, "hidden": 1, "chosen": 2}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VECTORS = {"attention_norm": 0, "mlp_norm": 1, "q_norm": 2, "k_norm": 3, "final_norm": 4}


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


class NativeModel:
    """Weights and cache of one decoder.

    Calls from several threads take turns, and closing it waits for the one under way. It is for the process that made
    it: a forked child has none of its threads, and is told so by KernelsError.
    """

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
        self._process, self._turn = os.getpid(), threading.Lock()
        self.close = weakref.finalize(self, _free, functions, self._handle, self._process, self._turn)
        """Gives the memory back, as soon as it is called or the object is dropped."""
        self.block_bytes = self._call(functions.liuyi_model_block_bytes)

    @property
    def weight_bytes(self) -> int:
        """Packed weights, without an embedding that is only looked up."""
        return self._call(self.library.functions.liuyi_model_weight_bytes)

    def pack(self, matrix: str, layer: int, fmt: str, parts: Sequence[Part]) -> None:
        """Pack the parts into a matrix of the layer (any for the head). Raises KernelsError if they do not fit."""
        columns = {"output": self.shape.heads * self.shape.head_dim, "down": self.shape.intermediate}
        sources = Sources(parts, columns.get(matrix, self.shape.hidden), f"the matrix '{matrix}'")
        which = (MATRICES[matrix], layer, WEIGHT_FORMATS[fmt])
        self._call(self.library.functions.liuyi_model_pack, *which, sources.array, len(parts))

    def set_vector(self, vector: str, layer: int, values: Array) -> None:
        """Set the weights of a norm (of any layer for the final one). Raises KernelsError for another length."""
        kept = np.ascontiguousarray(values, dtype=np.float32)
        which = (VECTORS[vector], layer)
        self._call(self.library.functions.liuyi_model_set_vector, *which, kept.ctypes.data, kept.size)

    def set_embedding(self, values: Array) -> None:
        """Set the embedding [vocab, hidden], float32 or bfloat16 as uint16 bits."""
        kept = np.ascontiguousarray(values)
        if kept.shape != (self.shape.vocab, self.shape.hidden):
            raise KernelsError(f"an embedding {list(kept.shape)} for a vocabulary of {self.shape.vocab}")
        formats = {"float32": WEIGHT_FORMATS["fp32"], "uint16": WEIGHT_FORMATS["bf16"]}
        if kept.dtype.name not in formats:
            raise KernelsError(f"an embedding is float32 or bfloat16 bits, not {kept.dtype.name}")
        self._call(self.library.functions.liuyi_model_set_embedding, formats[kept.dtype.name], kept.ctypes.data)

    def set_adapter(self, slot: int, layer: int, projection: str, down: Array, up: Array) -> None:
        """Add up·(down·x) to a projection for sequences of the slot: down [rank, columns], up [rows, rank], scaled.

        Raises KernelsError if the shapes do not fit the layer.
        """
        rows, columns = self._projection_shape(projection)
        kept_down, kept_up = (np.ascontiguousarray(values, dtype=np.float32) for values in (down, up))
        rank = kept_down.shape[0]
        if kept_down.shape != (rank, columns) or kept_up.shape != (rows, rank):
            raise KernelsError(
                f"{list(kept_up.shape)} times {list(kept_down.shape)} does not fit {projection}, [{rows}, {columns}]"
            )
        arguments = (slot, layer, PROJECTIONS.index(projection), rank, kept_down.ctypes.data, kept_up.ctypes.data)
        self._call(self.library.functions.liuyi_model_set_adapter, *arguments)

    def drop_adapter(self, slot: int) -> None:
        """Forget what was added for a slot, if anything was."""
        self._call(self.library.functions.liuyi_model_drop_adapter, slot)

    def _projection_shape(self, projection: str) -> tuple[int, int]:
        """Rows and columns of a projection's matrix."""
        shape = self.shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        shapes = {
            "q_proj": (query, shape.hidden),
            "k_proj": (key, shape.hidden),
            "v_proj": (key, shape.hidden),
            "o_proj": (shape.hidden, query),
            "gate_proj": (shape.intermediate, shape.hidden),
            "up_proj": (shape.intermediate, shape.hidden),
            "down_proj": (shape.hidden, shape.intermediate),
        }
        return shapes[projection]

    def forward(self, batch: BatchView, result: int, output: str = "logits") -> None:
        """Compute a batch; its results go to the address `result`.

        `output` says what they are: float32 `logits` [rows, vocab], float32 `hidden` states [rows, hidden], or the
        `chosen` tokens, int32 [rows]: of each row the first with the largest logit, or one drawn at its temperature.

        Raises KernelsError if the batch is not possible; nothing has changed then.
        """
        self._call(self.library.functions.liuyi_model_forward, ctypes.byref(batch), OUTPUTS[output], result)

    def draw(self, rows: NDArray[np.void]) -> NDArray[np.int32]:
        """A token for each of some `DRAW`s, whose addresses are of logits [vocab] and of arrays as long as they say."""
        tokens = np.empty(len(rows), np.int32)
        self._check_rows(rows, DRAW)
        self._call(self.library.functions.liuyi_model_draw, rows.ctypes.data, len(rows), tokens.ctypes.data)
        return tokens

    def score(self, rows: NDArray[np.void]) -> None:
        """Write the log-probabilities that some `SCORE`s ask for to the addresses that they give."""
        self._check_rows(rows, SCORE)
        self._call(self.library.functions.liuyi_model_score, rows.ctypes.data, len(rows))

    def _check_rows(self, rows: NDArray[np.void], dtype: np.dtype[np.void]) -> None:
        if rows.dtype != dtype or not rows.flags.c_contiguous:
            raise KernelsError(f"rows are a C-contiguous array of {dtype.names}")

    def _call(self, function: Callable[..., int], *arguments: Any) -> int:
        """What the function returns. Raises KernelsError with its reason if that is below 0."""
        if os.getpid() != self._process:
            raise KernelsError("the model belongs to another process: its threads did not survive the fork")
        with self._turn:
            if not self.close.alive:
                raise KernelsError("the model is closed")
            result = int(function(self._handle, *arguments))
            if result < 0:
                raise KernelsError(self.library.reason())
            return result


def _free(functions: ctypes.CDLL, handle: int, process: int, turn: threading.Lock) -> None:
    # A forked child would wait for threads that it does not have, or for a turn that nobody ends.
    if os.getpid() == process:
        with turn:
            functions.liuyi_model_free(handle)
