"""Bits of documents, one by one: under a decoder, under n-gram models, and compressed, alone or with their package.

All models are given the same tokens: a document's bits are those of its tokens and of the `<eos>` that ends it, given
only what comes before in that document. `xz` is given the same, a document alone. Beside it stands `xz` of the whole
text of a package at once, which is more than the others see; its bits are shared out to the package's documents by
their bytes, so that sums over packages are exact.
"""

from __future__ import annotations

import lzma
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from liuyi.core.errors import DataError
from liuyi.model.decoder import Decoder
from liuyi.model.loss import token_logprobs
from liuyi.pretrain.ngram import KneserNey, unigram_logprobs
from liuyi.train.batches import IGNORE
from liuyi.train.data import TokenStream
from liuyi.train.packing import Example, lay_out, pack

Floats = NDArray[np.float64]
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Documents:
    """Held-out documents: where each one's tokens are, and what it is."""

    ids: list[str]
    clusters: list[str]
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Documents:
        """`documents.parquet` of a tokens artifact."""
        import pyarrow.parquet as pq

        columns = pq.read_table(folder / "documents.parquet").to_pydict()
        offsets, tokens, sizes = (np.array(columns[name], dtype=np.int64) for name in ("offset", "tokens", "bytes"))
        return cls(columns["id"], columns["cluster"], offsets, tokens, sizes)

    def sample(self, max_tokens: int, seed: int) -> Documents:
        """As many documents, drawn at random, as fit into so many tokens; all when they do. The order stays."""
        order = np.random.default_rng(seed).permutation(len(self.ids))
        taken = np.sort(order[np.cumsum(self.tokens[order]) <= max_tokens])
        if not len(taken):
            raise DataError(f"no held-out document has as few as {max_tokens} tokens")
        return self.take(taken)

    def take(self, taken: NDArray[np.int64]) -> Documents:
        """The documents of these numbers."""
        return Documents(
            [self.ids[at] for at in taken],
            [self.clusters[at] for at in taken],
            self.offsets[taken],
            self.tokens[taken],
            self.bytes[taken],
        )


def model_bits(
    model: Decoder,
    stream: TokenStream,
    documents: Documents,
    *,
    window: int,
    batch_rows: int = 16,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """Bits of each document under the model, float64 [documents].

    A document longer than `window` tokens is read in windows that overlap by half; each token is scored once, in the
    first window that reaches it, so all but the first half-window of tokens have at least half a window of context.
    """
    pieces: list[Example] = []
    owners: list[int] = []
    for number, (offset, size) in enumerate(zip(documents.offsets, documents.tokens, strict=True)):
        text = np.concatenate([[stream.eos_id], stream.tokens[offset : offset + size].astype(np.int64)])
        for begin, scored_from, end in _windows(len(text), window + 1):
            learnt = np.arange(begin, end) >= scored_from
            pieces.append(Example(text[begin:end], learnt))
            owners.append(number)
    rows = pack([len(piece) for piece in pieces], window + 1)
    bits = np.zeros(len(documents.ids))
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(rows), batch_rows):
            here = rows[at : at + batch_rows]
            batch = lay_out([[pieces[number] for number in row] for row in here], window + 1, stream.eos_id)
            hidden = model(batch.tokens, positions=batch.positions, segments=batch.segments)
            scored = batch.targets != IGNORE
            nats = -token_logprobs(hidden[scored], model.head_weight, batch.targets[scored]).double().numpy()
            lookup = np.zeros((len(here), max(map(len, here)) + 1), dtype=np.int64)
            for row, numbers in enumerate(here):
                lookup[row, : len(numbers)] = [owners[number] for number in numbers]
            where = scored.numpy()
            owner = lookup[np.nonzero(where)[0], batch.segments.numpy()[where]]
            bits += np.bincount(owner, weights=nats, minlength=len(bits)) / math.log(2)
            on_progress(min(at + batch_rows, len(rows)), len(rows))
    return bits


def _windows(length: int, window: int) -> list[tuple[int, int, int]]:
    """(begin, first scored, end) of windows over `length` tokens, the first of which is given."""
    result = [(0, 1, min(length, window))]
    while result[-1][2] < length:
        end = min(length, result[-1][2] + window // 2)
        result.append((end - window, result[-1][2], end))
    return result


def stream_bits(logprobs: Floats, documents: Documents) -> Floats:
    """Bits of each document from natural-log probabilities of every token of the stream they lie in."""
    sums = np.concatenate([[0.0], np.cumsum(logprobs)])
    return np.asarray((sums[documents.offsets] - sums[documents.offsets + documents.tokens]) / math.log(2))


def baseline_bits(train: TokenStream, heldout: TokenStream, documents: Documents) -> dict[str, Floats]:
    """Bits of each document under token frequencies and under the n-gram model, both of the training tokens."""
    vocab_size, eos_id = train.vocab_size, train.eos_id
    ngram = KneserNey(train.tokens, vocab_size=vocab_size, eos_id=eos_id)
    return {
        "unigram": stream_bits(unigram_logprobs(train.tokens, heldout.tokens, vocab_size=vocab_size), documents),
        "5gram": stream_bits(ngram.logprobs(heldout.tokens), documents),
    }


def xz_bits(texts: Mapping[str, str], documents: Documents) -> Floats:
    """Bits of each document's compressed text, a document alone; `texts` are by document id."""
    _all_there(texts, documents)
    return np.array([float(_compressed_bits([texts[id]])) for id in documents.ids])


def xz_package_bits(texts: Mapping[str, str], clusters: Mapping[str, str], documents: Documents) -> Floats:
    """Bits of each document's share of its package's compressed text; `texts` and `clusters` are by document id."""
    _all_there(texts, documents)
    by_cluster: dict[str, list[str]] = defaultdict(list)
    for id in texts:
        by_cluster[clusters[id]].append(id)
    wanted = set(documents.clusters)
    per_byte = {
        cluster: _compressed_bits([texts[id] for id in ids]) / sum(len(texts[id].encode()) for id in ids)
        for cluster, ids in by_cluster.items()
        if cluster in wanted
    }
    return np.array([per_byte[c] * size for c, size in zip(documents.clusters, documents.bytes, strict=True)])


def _all_there(texts: Mapping[str, str], documents: Documents) -> None:
    missing = [id for id in documents.ids if id not in texts]
    if missing:
        raise DataError(f"the corpus lacks {len(missing)} of the held-out documents, such as '{missing[0]}'")


_LEAST_DICTIONARY, _PRESET_DICTIONARY = 4096, 64 << 20
"""Bytes: the least that xz takes, and what `xz -9` has."""


def _compressed_bits(texts: Sequence[str]) -> int:
    data = SEPARATOR.join(texts).encode()
    # A dictionary longer than the text finds nothing more, and to clear 64 MiB of one takes longer than most texts do.
    dictionary = min(max(len(data), _LEAST_DICTIONARY), _PRESET_DICTIONARY)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return 8 * len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def bits_per_byte(bits: Floats, documents: Documents, *, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """Bits over bytes of all documents, with a 95 % interval over resampled packages."""
    names, cluster = np.unique(np.array(documents.clusters), return_inverse=True)
    total_bits = np.bincount(cluster, weights=bits)
    total_bytes = np.bincount(cluster, weights=documents.bytes)
    drawn = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    ratios = total_bits[drawn].sum(axis=1) / total_bytes[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"mean": float(total_bits.sum() / total_bytes.sum()), "low": float(low), "high": float(high)}
