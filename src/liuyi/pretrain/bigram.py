"""A head start: embeddings and head that know the training text's bigrams before the first step.

A decoder whose layers add nothing yet predicts the next token from the current one alone:
logits = head · norm(embedding). The best such model is a low-rank picture of the bigram table, and the singular value
decomposition finds it in seconds, where gradient descent spends its first thousands of batches. What is fitted is
log(1 + count / (smoothing · expected)), the pointwise mutual information shifted so that pairs never seen are zero
(Levy and Goldberg 2014), beside the log-frequencies of the tokens; the table stays sparse throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]


def bigram_embeddings(
    tokens: NDArray[Any], *, vocab_size: int, hidden_size: int, eos_id: int, smoothing: float = 40.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embedding and head, both float32 `[vocab, hidden]`, for a stream whose documents end with `eos_id`.

    Embeddings have a root mean square of 1, so that an RMS norm with unit weight leaves them as they are. `smoothing`
    is how many expected occurrences a pair is given beside the seen ones.
    """
    table = _counts(tokens, vocab_size, eos_id)
    given = np.asarray(table.sum(axis=1)).ravel() + 1.0
    share = np.asarray(table.sum(axis=0)).ravel() + 1.0
    share /= share.sum()
    surplus = table.tocoo()
    surplus.data = np.log1p(surplus.data / (smoothing * share[surplus.col]))
    surplus = surplus.tocsr()
    rng = np.random.default_rng(seed)
    left, values = _decompose(sparse.diags_array(np.sqrt(given)) @ surplus, hidden_size - 1, rng)
    features = left * values / np.sqrt(given)[:, None]
    features /= max(float(np.sqrt(np.mean(features**2))), 1e-12)
    # A token never seen has no features; unlike ones keep such tokens apart when they are learnt later.
    unseen = given == 1.0
    features[unseen] = rng.standard_normal((int(unseen.sum()), hidden_size - 1))
    embedding = _unit_rms(np.concatenate([np.ones((vocab_size, 1)), features], axis=1))
    head = _fit(embedding, surplus, np.log(share), given)
    # Turned at random, so that no channel is special.
    turn, _ = np.linalg.qr(rng.standard_normal((hidden_size, hidden_size)))
    return (embedding @ turn).astype(np.float32), (head @ turn).astype(np.float32)


def _counts(tokens: NDArray[Any], vocab_size: int, eos_id: int) -> sparse.csr_array:
    stream = np.concatenate([[eos_id], np.asarray(tokens, dtype=np.int64)])
    ones = np.ones(len(stream) - 1)
    return sparse.coo_array((ones, (stream[:-1], stream[1:])), shape=(vocab_size, vocab_size)).tocsr()


def _decompose(matrix: sparse.csr_array, rank: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Left singular vectors `[rows, rank]` and values, by subspace iteration from a random start
    (Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness")."""
    basis = rng.standard_normal((matrix.shape[1], min(rank + 16, matrix.shape[1])))
    for _ in range(4):
        basis, _ = np.linalg.qr(matrix @ basis)
        basis, _ = np.linalg.qr(matrix.T @ basis)
    left, values, _ = np.linalg.svd(matrix @ basis, full_matrices=False)
    found = min(rank, len(values))
    padding = ((0, 0), (0, rank - found))
    return np.pad(left[:, :found], padding), np.pad(values[:found], padding[1])


def _fit(embedding: Floats, surplus: sparse.csr_array, log_share: Floats, given: Floats) -> Floats:
    """The head whose logits are nearest, in weighted least squares, to surplus + log-frequencies."""
    weighted = embedding * given[:, None]
    gram = weighted.T @ embedding
    gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    wanted = (surplus.T @ weighted).T + np.outer(weighted.sum(axis=0), log_share)
    return np.asarray(np.linalg.solve(gram, wanted).T)


def _unit_rms(rows: Floats) -> Floats:
    return np.asarray(rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True)))
