"""Prompt lookup: what followed the last few tokens when they came before (Saxena 2023; arXiv 2304.04487).

Good where the output repeats its input: summaries, edits, answers with quotes, code. Costs nothing where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from liuyi.infer.sequence import Sequence as Running
from liuyi.infer.speculate.speculator import Sample

_INDEXED = 16_384
"""Of longer texts the last so many tokens are searched."""


class PromptLookup:
    """Drafts by the latest earlier occurrence of a sequence's last tokens."""

    def __init__(self, most: int = 10, grams: Sequence[int] = (4, 3, 2)) -> None:
        """`most` is the longest draft; `grams` are how many last tokens are looked for, the first that is found."""
        self.most = most
        self.token_s = 0.0
        self._grams = grams
        self._places: dict[int, _Places] = {}

    def draft(self, wanted: Sequence[tuple[Running, int]], sample: Sample) -> list[list[int]]:
        """See `Drafter.draft`."""
        return [self._follow(sequence.id, sequence.tokens, length) for sequence, length in wanted]

    def forget(self, sequence: Running) -> None:
        """See `Drafter.forget`."""
        self._places.pop(sequence.id, None)

    def _follow(self, id: int, tokens: list[int], length: int) -> list[int]:
        places = self._places.get(id)
        if places is None:
            places = self._places[id] = _Places(self._grams, max(0, len(tokens) - _INDEXED))
        at = places.find(tokens)
        return [] if at is None else tokens[at : at + length]


class _Places:
    """Where each n-gram of a growing text was seen last, as the place after it."""

    def __init__(self, grams: Sequence[int], begin: int) -> None:
        self._seen: dict[int, dict[tuple[int, ...], int]] = {gram: {} for gram in grams}
        self._indexed = begin

    def find(self, tokens: list[int]) -> int | None:
        """The place after the latest earlier occurrence of the last tokens."""
        for gram, seen in self._seen.items():
            for end in range(max(gram, self._indexed), len(tokens)):
                seen[tuple(tokens[end - gram : end])] = end
        self._indexed = len(tokens)
        for gram, seen in self._seen.items():
            place = seen.get(tuple(tokens[-gram:]))
            if place is not None:
                return place
        return None
