"""Prompt lookup: what followed the last few tokens when they came before (Saxena 2023; arXiv 2304.04487).

Good where the output repeats its input or itself: summaries, edits, answers with quotes, code, lists. Costs nothing
where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from liuyi.infer.sequence import Sequence as Running
from liuyi.infer.speculate.speculator import Choose

_INDEXED = 16_384
"""Of longer texts the last so many tokens are searched."""


class PromptLookup:
    """Drafts by the latest earlier occurrence of a sequence's last tokens."""

    def __init__(self, most: int = 10, grams: Sequence[int] = (4, 3, 2)) -> None:
        """`most` is the longest draft; `grams` are how many last tokens are looked for, the first that is found."""
        self.token_s = 0.0
        self._most = most
        self._grams = grams
        self._places: dict[int, _Places] = {}

    def offers(self, sequence: Running) -> int:
        """See `Drafter.offers`."""
        return self._most if self._place(sequence) is not None else 0

    def guess(self, sequence: Running) -> int | None:
        """See `Drafter.guess`."""
        place = self._place(sequence)
        return None if place is None else sequence.tokens[place]

    def draft(self, wanted: Sequence[tuple[Running, int]], choose: Choose) -> list[list[int]]:
        """See `Drafter.draft`."""
        drafts = []
        for sequence, length in wanted:
            place = self._place(sequence)
            drafts.append([] if place is None else _follow(sequence.tokens, place, length))
        return drafts

    def forget(self, sequence: Running) -> None:
        """See `Drafter.forget`."""
        self._places.pop(sequence.id, None)

    def _place(self, sequence: Running) -> int | None:
        places = self._places.get(sequence.id)
        if places is None:
            begin = max(0, len(sequence.tokens) - _INDEXED)
            places = self._places[sequence.id] = _Places(self._grams, begin)
        return places.find(sequence.tokens)


def _follow(tokens: list[int], place: int, length: int) -> list[int]:
    """So many tokens from a place on; what repeats itself up to its end is taken to go on so."""
    period = len(tokens) - place
    return [tokens[place + at % period] for at in range(length)]


class _Places:
    """Where each n-gram of a growing text was seen last, as the place after it."""

    def __init__(self, grams: Sequence[int], begin: int) -> None:
        self._seen: dict[int, dict[tuple[int, ...], int]] = {gram: {} for gram in grams}
        self._indexed = begin
        self._found: int | None = None

    def find(self, tokens: list[int]) -> int | None:
        """The place after the latest earlier occurrence of the last tokens."""
        if self._indexed == len(tokens):
            return self._found
        for gram, seen in self._seen.items():
            for end in range(max(gram, self._indexed), len(tokens)):
                seen[tuple(tokens[end - gram : end])] = end
        self._indexed = len(tokens)
        places = (seen.get(tuple(tokens[-gram:])) for gram, seen in self._seen.items())
        self._found = next((place for place in places if place is not None), None)
        return self._found
