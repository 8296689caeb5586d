"""The n-gram baseline against the formulas of Chen and Goodman, written out with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from liuyi.pretrain.ngram import KneserNey, unigram_logprobs

EOS = 0


class Plain:
    """Interpolated modified Kneser–Ney: one dictionary an order, one recursion."""

    def __init__(self, documents: Sequence[Sequence[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        raw: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for document in documents:
            padded = [EOS, *document, EOS]
            for end in range(1, len(padded)):
                for n in range(1, order + 1):
                    if end - n + 1 >= 0:
                        raw[n][tuple(padded[end - n + 1 : end + 1])] += 1
        self.counts: list[dict[tuple[int, ...], int]] = [{} for _ in range(order + 1)]
        self.counts[order] = dict(raw[order])
        for n in range(1, order):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in raw[n + 1]:
                before[gram[1:]].add(gram[0])
            for gram, count in raw[n].items():
                opens = n > 1 and gram[0] == EOS
                self.counts[n][gram] = count if opens else len(before[gram])
        self.discounts = [self._discounts(counts) for counts in self.counts]

    @staticmethod
    def _discounts(counts: dict[tuple[int, ...], int]) -> list[float]:
        of = Counter(counts.values())
        n1, n2, n3, n4 = (max(1, of[c]) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        return [0.0, *(min(max(d, 0.05), c - 0.05) for c, d in enumerate(found, start=1))]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        n = len(context) + 1
        lower = 1 / self.vocab_size if n == 1 else self.probability(context[1:], token)
        following = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return lower
        discounts = self.discounts[n]
        removed = sum(discounts[min(count, 3)] for count in following.values())
        count = following.get(token, 0)
        return (count - discounts[min(count, 3)]) / total + removed / total * lower

    def document(self, document: Sequence[int]) -> list[float]:
        padded = [EOS, *document, EOS]
        return [
            self.probability(tuple(padded[max(0, end - self.order + 1) : end]), padded[end])
            for end in range(1, len(padded))
        ]


def documents(count: int, vocab_size: int, seed: int) -> list[list[int]]:
    """From a bigram model, so that higher orders repeat."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(vocab_size - 1, 0.15), size=vocab_size)
    result = []
    for _ in range(count):
        text = [int(rng.integers(1, vocab_size))]
        for _ in range(int(rng.integers(0, 14))):
            text.append(1 + int(rng.choice(vocab_size - 1, p=table[text[-1]])))
        result.append(text)
    return result


def stream(texts: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([token for text in texts for token in [*text, EOS]], dtype=np.uint16)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_formula(order: int) -> None:
    train, test = documents(60, 12, seed=1), [*documents(15, 12, seed=2), [11, 11, 11, 3], []]
    model = KneserNey(stream(train), vocab_size=14, eos_id=EOS, order=order)
    plain = Plain(train, vocab_size=14, order=order)
    expected = [math.log(p) for text in test for p in plain.document(text)]
    np.testing.assert_allclose(model.logprobs(stream(test)), expected, rtol=1e-9)


def test_probabilities_sum_to_one() -> None:
    """After any context, seen or not, over the whole vocabulary."""
    vocab_size = 14
    model = KneserNey(stream(documents(80, 12, seed=3)), vocab_size=vocab_size, eos_id=EOS)
    for context in [*documents(30, 12, seed=4), [13, 13], [], [12]]:
        last = context[-6:]
        # A token other than <eos> is followed by one, which only its own place looks at.
        texts = [[*last, token] for token in range(1, vocab_size)]
        scored = model.logprobs(stream(texts)).reshape(vocab_size - 1, -1)[:, len(last)]
        ended = model.logprobs(stream([last]))[-1]
        assert np.exp(scored).sum() + np.exp(ended) == pytest.approx(1.0, abs=1e-12)


def test_order_helps_on_text_with_memory() -> None:
    """On text from a bigram model, two tokens beat one, and five lose little."""
    train, test = stream(documents(3000, 30, seed=5)), stream(_fresh(30))
    bits = [-KneserNey(train, vocab_size=30, eos_id=EOS, order=n).logprobs(test).mean() for n in (1, 2, 5)]
    assert bits[1] < bits[0] - 0.3
    assert bits[2] < bits[1] + 0.2


def _fresh(vocab_size: int) -> list[list[int]]:
    """More documents from the same bigram table as seed 5 gives."""
    return documents(3400, vocab_size, seed=5)[3000:]


def test_unigram_is_add_one() -> None:
    train = np.array([1, 1, 2, 0])
    scored = unigram_logprobs(train, np.array([1, 3]), vocab_size=5)
    np.testing.assert_allclose(np.exp(scored), [3 / 9, 1 / 9])
