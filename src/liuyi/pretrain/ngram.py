"""The baseline that a language model must beat: an interpolated n-gram model with modified Kneser–Ney smoothing.

Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", with discounts estimated
per order from the counts of counts. Counting and scoring are sorts and searches over whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order, sorted by `context * vocab_size + token`."""

    keys: Ints
    discounted: Floats
    """Count less its discount, over the context's sum of counts; one per n-gram."""
    backoff: Floats
    """Weight of the lower order, one per context (an n-gram of the lower order); 1 for contexts never seen."""


class KneserNey:
    """Trained on a stream of token ids in which each document ends with `eos_id`.

    A document's first token is predicted from an `eos_id` before it, and no context reaches across a border. As in
    KenLM (Heafield et al. 2013), n-grams that open a document keep their plain counts in the lower orders.
    """

    def __init__(self, tokens: NDArray[Any], *, vocab_size: int, eos_id: int, order: int = 5) -> None:
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.order = order
        stream = self._stream(tokens)
        ranks, first_seen, counts, keys = self._count(stream)
        self.orders: list[_Order] = []
        for k in range(order):
            adjusted = counts[k]
            if k + 1 < order:
                extended = np.bincount(ranks[k][first_seen[k + 1]], minlength=len(keys[k]))
                opens = stream[first_seen[k] - k] == eos_id
                opens &= k > 0
                adjusted = np.where(opens, counts[k], extended)
            contexts = len(keys[k - 1]) if k else 1
            self.orders.append(_discount(keys[k], adjusted, keys[k] // vocab_size, contexts))

    def logprobs(self, tokens: NDArray[Any]) -> Floats:
        """Natural-log probability of each token of such a stream, `<eos>` included."""
        stream = self._stream(tokens)
        inside = _tokens_since_eos(stream, self.eos_id)
        probability = np.full(len(stream), 1.0 / self.vocab_size)
        context = np.zeros(len(stream), dtype=np.int64)
        for k, order in enumerate(self.orders):
            known = context >= 0
            key = np.where(known, context * self.vocab_size + stream, -1)
            at = np.minimum(np.searchsorted(order.keys, key), len(order.keys) - 1)
            found = order.keys[at] == key
            probability = np.where(
                known,
                np.where(found, order.discounted[at], 0.0) + order.backoff[np.maximum(context, 0)] * probability,
                probability,
            )
            rank = np.where(found, at, -1)
            context = np.concatenate([[-1], rank[:-1]])
            context[inside < k + 1] = -1
        return np.asarray(np.log(probability[1:]))

    def _stream(self, tokens: NDArray[Any]) -> Ints:
        return np.concatenate([[self.eos_id], np.asarray(tokens, dtype=np.int64)])

    def _count(self, stream: Ints) -> tuple[list[Ints], list[Ints], list[Ints], list[Ints]]:
        """For each order: the n-gram ending at each place (-1 where there is none), where each was first seen,
        how often, and the sorted keys."""
        inside = _tokens_since_eos(stream, self.eos_id)
        ranks: list[Ints] = []
        first_seen: list[Ints] = []
        counts: list[Ints] = []
        keys: list[Ints] = []
        context = np.zeros(len(stream), dtype=np.int64)
        for k in range(self.order):
            places = np.flatnonzero(inside >= k)[0 if k else 1 :]
            unique, first, inverse, count = np.unique(
                context[places] * self.vocab_size + stream[places],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            rank = np.full(len(stream), -1, dtype=np.int64)
            rank[places] = inverse
            if not k:
                rank[0] = np.searchsorted(unique, stream[0])
            ranks.append(rank)
            first_seen.append(places[first])
            counts.append(count)
            keys.append(unique)
            context = np.concatenate([[-1], rank[:-1]])
        return ranks, first_seen, counts, keys


def unigram_logprobs(train: NDArray[Any], tokens: NDArray[Any], *, vocab_size: int) -> Floats:
    """Natural-log probability of each token under the training frequencies, plus one for every token."""
    counts = np.bincount(np.asarray(train, dtype=np.int64), minlength=vocab_size) + 1.0
    return np.asarray(np.log(counts / counts.sum())[np.asarray(tokens, dtype=np.int64)])


def _tokens_since_eos(stream: Ints, eos_id: int) -> Ints:
    """How many tokens of context each place has: those since the last `<eos>` before it, with that one."""
    at = np.arange(len(stream), dtype=np.int64)
    last = np.maximum.accumulate(np.where(stream == eos_id, at, -1))
    return np.asarray(at - np.concatenate([[0], last[:-1]]))


def _discount(keys: Ints, counts: Ints, contexts: Ints, num_contexts: int) -> _Order:
    """Discounted shares of n-grams with these adjusted counts, and what is left for the lower order."""
    of_count = [max(1, int(np.count_nonzero(counts == c))) for c in range(1, 5)]
    y = of_count[0] / (of_count[0] + 2 * of_count[1])
    discounts = [c - (c + 1) * y * of_count[c] / of_count[c - 1] for c in range(1, 4)]
    table = np.array([0.0, *(min(max(d, 0.05), c - 0.05) for c, d in enumerate(discounts, start=1))])
    discount = table[np.minimum(counts, 3)]
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
    removed = np.bincount(contexts, weights=discount, minlength=num_contexts)
    seen = totals > 0
    backoff = np.divide(removed, totals, out=np.ones(num_contexts), where=seen)
    discounted = np.divide(counts - discount, totals[contexts], out=np.zeros(len(counts)), where=seen[contexts])
    return _Order(keys, discounted, backoff)
