"""Near-duplicate instructions: ROUGE-L (Lin, 2004) against all that were seen, as self-instruct filters its own.

ROUGE-L is the F-measure of the longest common subsequence of words, which finds short texts that MinHash of 5-grams
cannot tell apart. It is exact here, and most pairs are never compared: two texts of `m` and `n` words that reach the
threshold t share at least t(m + n)/2 words, so they share one among the first few in any fixed order of words (prefix
filtering, Chaudhuri et al. 2006). The order puts long words first, which are rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from liuyi.core.words import split


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """2·LCS / (m + n), with the subsequence's length found bit-parallel (Hyyrö, 2004); 0 where both are empty."""
    if not one or not other:
        return 0.0
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(one)) - 1
    row = everything
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & everything
    return 2 * (len(one) - row.bit_count()) / (len(one) + len(other))


class Seen:
    """Texts seen so far, and whether a new one is too much like one of them."""

    def __init__(self, threshold: float = 0.7) -> None:
        self._threshold = threshold
        self._texts: list[tuple[str, list[str]]] = []
        self._with_word: dict[tuple[str, int], list[int]] = {}

    def nearest(self, text: str) -> tuple[str, float] | None:
        """(id, similarity) of the most similar text that reaches the threshold; the earliest of equals."""
        words = split(text)
        best: tuple[float, int] | None = None
        for number in sorted(self._candidates(words)):
            other = self._texts[number][1]
            if 2 * min(len(words), len(other)) < self._threshold * (len(words) + len(other)):
                continue
            similarity = rouge_l(words, other)
            if similarity >= self._threshold and (best is None or similarity > best[0]):
                best = (similarity, number)
        return (self._texts[best[1]][0], best[0]) if best else None

    def add(self, id: str, text: str) -> None:
        """See a text."""
        words = split(text)
        for word in self._prefix(words):
            self._with_word.setdefault(word, []).append(len(self._texts))
        self._texts.append((id, words))

    def _candidates(self, words: list[str]) -> set[int]:
        return {number for word in self._prefix(words) for number in self._with_word.get(word, ())}

    def _prefix(self, words: list[str]) -> list[tuple[str, int]]:
        """The first words in the fixed order of which one must be shared; a word said twice counts as two words."""
        fewest_shared = math.ceil(self._threshold * len(words) / (2 - self._threshold) - 1e-9)
        said: dict[str, int] = {}
        numbered = []
        for word in words:
            said[word] = said.get(word, 0) + 1
            numbered.append((word, said[word]))
        numbered.sort(key=lambda word: (-len(word[0]), word))
        return numbered[: len(words) - fewest_shared + 1] if words else []
