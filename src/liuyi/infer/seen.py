"""Which tokens a sequence has, each once, and how often each is in its output: what penalties go by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class Seen:
    """Tokens of a prompt and of the output that grows after it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._tokens = np.zeros(max(64, 2 * len(self._place)), np.int32)
        self._counts = np.zeros(len(self._tokens), np.float32)
        self._tokens[: len(self)] = list(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def add(self, tokens: Iterable[int]) -> None:
        """The output goes on with these."""
        for token in tokens:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[place] = token
            self._counts[place] += 1

    @property
    def tokens(self) -> NDArray[np.int32]:
        """[different tokens]"""
        return self._tokens[: len(self)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of `tokens` is in the output; 0 for those of the prompt alone."""
        return self._counts[: len(self)]
