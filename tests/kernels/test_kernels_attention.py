"""Attention of the native forward pass against its formula in float64, where scores of a span are far apart.

One layer does nothing but attend: tokens are unit vectors, the output projection is the identity, the MLP is zero, and
nothing is rotated. Keys and values are exact in every format but int8.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from liuyi.kernels.library import INSTRUCTION_SETS, BatchView, KernelsAbsent, instruction_set_number, kernels
from liuyi.kernels.model import NativeModel, NativeShape
from liuyi.kernels.parts import Part

try:
    BEST = kernels().instruction_set
except KernelsAbsent as absent:
    pytest.skip(f"no native kernels: {absent.message}", allow_module_level=True)

Floats = NDArray[np.float32]

HEADS, SIZE, TOKENS = 3, 64, 300
HIDDEN = HEADS * SIZE
SLOPES = np.array([1.0, -1.0, 0.25])
"""Of the scores of a query's heads: in the first they rise where the others' fall, or rise less."""

POSITIONS = np.arange(TOKENS)
SCORES = {
    "rising": POSITIONS // 2.0,
    "falling": (TOKENS - POSITIONS) // 2.0,
    "one above the others": POSITIONS % 4 + 60.0 * (POSITIONS == 100),
    "one above the others in the second span": POSITIONS % 4 + 60.0 * (POSITIONS == 290),
    "one below the others at first": POSITIONS % 4 - 200.0 * (POSITIONS == 0),
}
"""Of each position's key with a query of slope 1, natural logarithms."""


class _Attention:
    """A model and its text, whose token at each position is that position's own."""

    def __init__(self, scores: NDArray[np.float64], kv: str) -> None:
        generator = np.random.default_rng(0)
        self.values = generator.integers(-16, 17, (TOKENS, SIZE)) / 8
        self.scores = scores
        shape = NativeShape(TOKENS, TOKENS, 64, 1, HEADS, 1, SIZE, 1e-12)
        model = self.model = NativeModel(shape, windows=[0], kv=kv, blocks=TOKENS // 32 + 1, threads=2)

        def pack(matrix: str, *weights: NDArray[np.float64]) -> None:
            model.pack(matrix, 0, "fp32", [Part(each.astype(np.float32)) for each in weights])

        queries = np.tile(np.repeat(SLOPES, SIZE)[:, None], (1, TOKENS))
        pack("qkv", queries, np.tile(scores / 8, (SIZE, 1)), self.values.T)
        pack("output", np.eye(TOKENS, HIDDEN))
        pack("gate_up", np.zeros((64, TOKENS)), np.zeros((64, TOKENS)))
        pack("down", np.zeros((TOKENS, 64)))
        pack("head", np.eye(TOKENS))
        model.set_embedding(np.eye(TOKENS, dtype=np.float32))
        model.set_vector("attention_norm", 0, np.full(TOKENS, TOKENS**-0.5))
        for norm in ("mlp_norm", "final_norm"):
            model.set_vector(norm, 0, np.ones(TOKENS))

    def read(self, begin: int, end: int) -> Floats:
        """The normed residual stream of some positions, those before having been read, [end - begin, hidden]."""
        count = end - begin
        tokens, wanted = np.arange(begin, end, dtype=np.int32), np.arange(count, dtype=np.int32)
        counts, lengths, adapters = (np.array([value], np.int32) for value in (count, begin, -1))
        table = np.arange(TOKENS // 32 + 1, dtype=np.int32)
        cosines, sines = np.ones((TOKENS, SIZE // 2), np.float32), np.zeros((TOKENS, SIZE // 2), np.float32)
        arrays = (tokens, counts, lengths, table, wanted, adapters, cosines, sines)
        view = BatchView(count, 1, len(table), count, TOKENS, False, *(array.ctypes.data for array in arrays))
        out = np.empty((count, TOKENS), np.float32)
        self.model.forward(view, out.ctypes.data, "hidden")
        return out

    def exact(self) -> NDArray[np.float64]:
        x = np.eye(TOKENS)
        for position in range(TOKENS):
            for head, slope in enumerate(SLOPES):
                scores = slope * self.scores[: position + 1]
                weights = np.exp(scores - scores.max())
                x[position, head * SIZE : (head + 1) * SIZE] += weights @ self.values[: position + 1] / weights.sum()
        normed: NDArray[np.float64] = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
        return normed


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("kv", "error"), [("fp32", 1e-4), ("bf16", 0.003), ("int8", 0.006)])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_scores_far_apart(
    name: str, kv: str, error: float, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if instruction_set_number(instruction_set) > instruction_set_number(BEST):
        pytest.skip(f"this processor has no {instruction_set}")
    monkeypatch.setenv("LIUYI_KERNELS", instruction_set)
    attention = _Attention(SCORES[name], kv)
    found, exact = attention.read(0, TOKENS), attention.exact()
    errors = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert errors.max() < error
    # Rows that are alone, or beside others, do not notice what these need.
    for begin, end in pairwise([0, 33, 101, 102, 296, 297, 298, 299, 300]):
        assert np.array_equal(attention.read(begin, end), found[begin:end])
