"""How well a language model knows text it has not seen: bits of each held-out document, beside honest baselines.

All models are given the same tokens: a document's bits are those of its tokens and of the `<eos>` that ends it, given
only what comes before in that document. `xz` is given the whole text of a package at once, which is more than the
others see; its bits are shared out to the package's documents by their bytes, so that sums over packages are exact.
"""

from __future__ import annotations

import json
import lzma
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from liuyi.core.errors import DataError, ModelError
from liuyi.core.step import Context
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.loss import token_logprobs
from liuyi.pretrain.ngram import KneserNey, unigram_logprobs
from liuyi.train.batches import IGNORE
from liuyi.train.data import TokenStream
from liuyi.train.packing import Example, lay_out, pack

if TYPE_CHECKING:
    from liuyi.pretrain.steps import EvaluateParams

Floats = NDArray[np.float64]
SEPARATOR = "\n\n"
SUBJECTS = {
    "model": "this model",
    "untrained": "the same model before training",
    "unigram": "token frequencies",
    "5gram": "5-gram, modified Kneser–Ney",
    "xz": "xz -9e, a package at once",
}


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


def xz_bits(texts: Mapping[str, str], clusters: Mapping[str, str], documents: Documents) -> Floats:
    """Bits of each document's share of its package's compressed text; `texts` and `clusters` are by document id."""
    by_cluster: dict[str, list[str]] = defaultdict(list)
    for id in texts:
        by_cluster[clusters[id]].append(id)
    missing = [id for id in documents.ids if id not in texts]
    if missing:
        raise DataError(f"the corpus lacks {len(missing)} of the held-out documents, such as '{missing[0]}'")
    wanted = set(documents.clusters)
    per_byte = {
        cluster: _compressed_bits([texts[id] for id in ids]) / sum(len(texts[id].encode()) for id in ids)
        for cluster, ids in by_cluster.items()
        if cluster in wanted
    }
    return np.array([per_byte[c] * size for c, size in zip(documents.clusters, documents.bytes, strict=True)])


def _compressed_bits(texts: Sequence[str]) -> int:
    data = SEPARATOR.join(texts).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
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


def evaluate_bits(ctx: Context, params: EvaluateParams) -> None:
    """Measure as `params` say and publish the evaluation.

    Raises ModelError when the tokens were not made for this model, DataError when corpus and tokens do not agree.
    """
    artifact = ctx.input("model")
    model = load_model(artifact.path)
    heldout, train = TokenStream(ctx.input("tokens").path), TokenStream(ctx.input("train_tokens").path)
    for stream in (heldout, train):
        if stream.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"the tokens use {stream.vocab_size} token ids, the model knows {model.config.vocab_size}",
                where=str(stream.folder),
            )
    documents = Documents.load(heldout.folder).sample(params.max_tokens, ctx.seed)
    bits: dict[str, Floats] = {}
    for name in ("model", "untrained"):
        if name == "untrained":
            init_weights(model, ctx.seed)
        bits[name] = model_bits(
            model,
            heldout,
            documents,
            window=params.window,
            on_progress=lambda done, total, name=name: ctx.progress(done, total, f"rows, {SUBJECTS[name]}"),  # type: ignore[misc]
        )
    ctx.log("counting n-grams")
    bits |= baseline_bits(train, heldout, documents)
    bits["xz"] = xz_bits(*read_texts(ctx.input("corpus").path), documents)
    with ctx.output("evaluation") as out:
        figures = write_evaluation(
            out.path,
            documents,
            bits,
            label=params.label,
            subject=artifact.digest,
            evalset=ctx.input("tokens").digest,
            seed=ctx.seed,
        )
        out.metrics.update(figures)
    ctx.log("bits per byte: " + ", ".join(f"{name[4:]} {value:.3f}" for name, value in figures.items()))


def read_texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Text and cluster of each document of a corpus, by id."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "documents.parquet", columns=["id", "text", "cluster"]).to_pydict()
    texts = dict(zip(table["id"], table["text"], strict=True))
    return texts, dict(zip(table["id"], table["cluster"], strict=True))


def write_evaluation(
    folder: Path, documents: Documents, bits: Mapping[str, Floats], *, label: str, subject: str, evalset: str, seed: int
) -> dict[str, float]:
    """Write the evaluation's two files; gives each subject's bits per byte."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = [""] * len(documents.ids)
    columns: dict[str, Any] = {"item": documents.ids, "cluster": documents.clusters}
    columns |= dict.fromkeys(("lang", "kind", "prompt", "reference", "output"), empty)
    columns |= {f"bits_{name}": values for name, values in bits.items()}
    columns["bytes"] = documents.bytes.astype(np.float64)
    pq.write_table(pa.table(columns), folder / "items.parquet")
    figures = {name: bits_per_byte(values, documents, seed=seed) for name, values in bits.items()}
    metrics = {
        f"bits_{name}": {
            "title": SUBJECTS[name],
            "kind": "ratio",
            "unit": "bits per byte",
            "better": "lower",
            "per": "bytes",
            **figure,
        }
        for name, figure in figures.items()
    }
    summary = {"name": "held-out text", "label": label, "subject": subject, "evalset": evalset, "metrics": metrics}
    (folder / "evaluation.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {f"bpb_{name}": figure["mean"] for name, figure in figures.items()}
