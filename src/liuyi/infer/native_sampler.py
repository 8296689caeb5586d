"""The sampler in native code: one thread does all of a row, some ten times as fast as torch's operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from liuyi.infer.request import Request
from liuyi.infer.sampler import Masks, Sampler
from liuyi.infer.sampling import Scored
from liuyi.kernels.draws import DRAW, SCORE
from liuyi.kernels.model import NativeModel


class NativeSampler(Sampler):
    """As `Sampler`, by the threads of a native model."""

    def __init__(self, slots: int, model: NativeModel) -> None:
        super().__init__(slots, model.shape.vocab)
        self._model = model
        self._draws = np.zeros(slots, DRAW)
        """What is the same for all draws of a slot."""
        self._biases: list[tuple[NDArray[np.int32], NDArray[np.float32]] | None] = [None] * slots

    def admit(self, slot: int, request: Request, seed: int, stop_ids: Collection[int] = ()) -> None:
        super().admit(slot, request, seed, stop_ids)
        draw = np.zeros((), DRAW)
        draw["repetition"], draw["presence"] = request.repetition_penalty, request.presence_penalty
        draw["frequency"] = request.frequency_penalty
        draw["temperature"] = self._temperatures[slot]
        draw["top_k"], draw["top_p"] = min(request.top_k, self.vocab_size), request.top_p
        draw["min_p"], draw["typical_p"] = request.min_p, request.typical_p
        if request.logit_bias:
            tokens = np.array(list(request.logit_bias), np.int32)
            biases = np.array(list(request.logit_bias.values()), np.float32)
            self._biases[slot] = tokens, biases
            draw["biased"], draw["biases"], draw["biased_count"] = tokens.ctypes.data, biases.ctypes.data, len(tokens)
        self._draws[slot] = draw

    def sample(
        self, logits: Tensor, rows: Sequence[int], slots: Sequence[int], positions: Sequence[int], masks: Masks | None
    ) -> list[int]:
        if not self._reads(logits):
            return super().sample(logits, rows, slots, positions, masks)
        at = list(slots)
        draws = self._draws[at]
        draws["logits"] = self._addresses(logits, rows)
        draws["key"] = self._keys(slots, positions)
        for row, slot in enumerate(at):
            seen = self._seen[slot]
            if seen is not None:
                draws["seen"][row], draws["counts"][row] = seen.tokens.ctypes.data, seen.counts.ctypes.data
                draws["seen_count"][row] = len(seen)
        allowed = self._allowed(slots, positions, masks)
        for row, mask in enumerate(allowed):
            if mask is not None:
                draws["allowed"][row] = mask.ctypes.data
        tokens: list[int] = self._model.draw(draws).tolist()
        return tokens

    def score(self, logits: Tensor, rows: Sequence[int], tokens: Sequence[int], tops: Sequence[int]) -> list[Scored]:
        if not self._reads(logits):
            return super().score(logits, rows, tokens, tops)
        tops = np.minimum(tops, self.vocab_size).tolist()
        logprobs = np.empty(len(tokens), np.float32)
        top_ids, top_logprobs = np.empty(sum(tops), np.int32), np.empty(sum(tops), np.float32)
        scores = np.zeros(len(tokens), SCORE)
        before = 4 * (np.cumsum(tops) - tops)
        scores["logits"], scores["token"], scores["top"] = self._addresses(logits, rows), tokens, tops
        scores["logprob"] = logprobs.ctypes.data + 4 * np.arange(len(tokens))
        scores["top_ids"], scores["top_logprobs"] = top_ids.ctypes.data + before, top_logprobs.ctypes.data + before
        self._model.score(scores)
        best = zip(top_ids.tolist(), top_logprobs.tolist(), strict=True)
        return [(logprob, tuple(islice(best, top))) for logprob, top in zip(logprobs.tolist(), tops, strict=True)]

    def _reads(self, logits: Tensor) -> bool:
        """Not those of a draft model that knows other tokens."""
        return logits.shape[1] == self.vocab_size and logits.is_contiguous()

    def _addresses(self, logits: Tensor, rows: Sequence[int]) -> NDArray[np.uint64]:
        return logits.data_ptr() + np.array(rows, np.uint64) * np.uint64(4 * self.vocab_size)
