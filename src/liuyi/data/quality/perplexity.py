"""Perplexity of documents under a model: how surprised it is by each token, given those before it.

A document is read from its beginning up to a number of tokens, which bounds the cost. One that is longer than the
window is read in windows that overlap by half, and each token is scored once, in the first window that reaches it; so
all but the first have at least half a window before them. Selecting by perplexity is CCNet's (Wenzek et al. 2020,
arXiv 1911.00359); which side to cut is a question of the corpus (Marion et al. 2023, arXiv 2309.04564).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liuyi.core.errors import ModelError
from liuyi.data.attributes import with_columns
from liuyi.data.parts import map_groups

if TYPE_CHECKING:
    from liuyi.infer.open import Weights
    from liuyi.infer.runner import Runner
    from liuyi.model.tokenizer import Tokenizer

SCHEMA = pa.schema([("perplexity", pa.float32()), ("bits_per_byte", pa.float32()), ("perplexity_tokens", pa.int32())])
_LOGITS_BYTES = 1 << 27
_MOST_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Plan:
    """How perplexity is measured."""

    window: int
    """Tokens that the model sees at once."""
    max_tokens: int
    """Tokens of a document that are read."""
    weights: Weights
    """As `open_runner` takes them."""


@dataclass(frozen=True)
class _Window:
    """A piece of one document: the model is given `tokens`, and those from `scored_from` on are scored."""

    document: int
    tokens: Sequence[int]
    scored_from: int


def perplexity(
    source: Path,
    out: Path,
    model: Path,
    plan: Plan,
    workdir: Path,
    *,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> int:
    """Write the corpus `source` to `out` with three attributes; gives the number of tokens scored.

    `perplexity` is that of a token, exp of the mean surprise; `bits_per_byte` is the surprise over the bytes of what
    was read, and compares models of different tokenizers; `perplexity_tokens` is how many tokens were read. A document
    without tokens has 1, 0 and 0. Raises ModelError where the model cannot score text.
    """
    from liuyi.model.load import load_tokenizer

    _first_token(load_tokenizer(model))  # what cannot be used is told before any work
    parts = map_groups(
        partial(measure_group, model, plan), source, ["text"], workdir, workers=1, on_progress=on_progress
    )
    scored = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal scored
        for table in parts:
            scored += int(np.sum(table["perplexity_tokens"].to_numpy()))
            yield table

    with_columns(source, out, SCHEMA, counted())
    return scored


def measure_group(model: Path, plan: Plan, group: pa.Table) -> pa.Table:
    """The attributes of the documents of a row group, by the model in a folder."""
    return _Reader.open(model, plan).measure(group["text"].fill_null("").to_pylist())


def _first_token(tokenizer: Tokenizer) -> int:
    """What a model is given before a document. Raises ModelError where there is nothing."""
    first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if first is None:
        raise ModelError("the tokenizer has neither a token that begins nor one that ends a document")
    return first


class _Reader:
    """A model that reads documents, opened once in a process."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, plan: Plan) -> None:
        self.runner, self.tokenizer, self.plan = runner, tokenizer, plan
        self.window = min(plan.window, runner.config.context_tokens)
        self.start = _first_token(tokenizer)
        self.sizes = np.array([len(data) for data in tokenizer.all_token_bytes])

    @staticmethod
    @cache
    def open(model: Path, plan: Plan) -> _Reader:
        from liuyi.infer.open import open_runner
        from liuyi.model.load import load

        decoder, tokenizer = load(model)
        window = min(plan.window, decoder.config.context_tokens)
        fitting = _LOGITS_BYTES // (4 * decoder.config.vocab_size)
        runner = open_runner(
            decoder,
            weights=plan.weights,
            kv="fp32" if plan.weights == "fp32" else "auto",
            kv_tokens=max(window, min(fitting, _MOST_BATCH_TOKENS)),
        )
        return _Reader(runner, tokenizer, plan)

    def measure(self, texts: Sequence[str]) -> pa.Table:
        ids = [found[: self.plan.max_tokens] for found in self._encoded(texts)]
        nats = np.zeros(len(ids))
        windows = (window for number, tokens in enumerate(ids) for window in self._windows(number, tokens))
        for batch in self._batches(windows):
            nats += self._surprise(batch, len(ids))
        counts = np.array([len(tokens) for tokens in ids], np.int32)
        sizes = np.array([self.sizes[tokens].sum() if tokens else 0 for tokens in ids])
        each = nats / np.maximum(counts, 1)
        bits = nats / math.log(2) / np.maximum(sizes, 1)
        return pa.table([np.exp(each).astype(np.float32), bits.astype(np.float32), counts], schema=SCHEMA)

    def _encoded(self, texts: Sequence[str]) -> Iterable[list[int]]:
        self.tokenizer.backend.encode_special_tokens = True
        longest = int(self.sizes.max()) * self.plan.max_tokens
        return self.tokenizer.encode_batch([text[:longest] for text in texts])

    def _windows(self, document: int, ids: Sequence[int]) -> Iterator[_Window]:
        tokens = [self.start, *ids]
        scored = 1
        while scored < len(tokens):
            end = min(len(tokens), self.window if scored == 1 else scored + self.window // 2)
            begin = max(0, end - self.window)
            yield _Window(document, tokens[begin:end], scored - begin)
            scored = end

    def _batches(self, windows: Iterable[_Window]) -> Iterator[list[_Window]]:
        """Windows in order, as many at a time as the runner has blocks for."""
        from liuyi.infer.blocks import blocks_for

        batch: list[_Window] = []
        held = 0
        for window in windows:
            needed = blocks_for(len(window.tokens))
            if batch and held + needed > self.runner.blocks:
                yield batch
                batch, held = [], 0
            batch.append(window)
            held += needed
        if batch:
            yield batch

    def _surprise(self, batch: Sequence[_Window], documents: int) -> NDArray[np.float64]:
        """[documents] the summed −log probability of the tokens scored, in nats."""
        import torch

        from liuyi.infer.blocks import blocks_for
        from liuyi.infer.runner import Batch, ids

        counts = np.array([len(window.tokens) for window in batch])
        starts = np.cumsum(counts) - counts
        tokens = np.concatenate([np.asarray(window.tokens) for window in batch])
        targets = np.concatenate(
            [
                np.arange(start + window.scored_from, start + size)
                for start, window, size in zip(starts, batch, counts, strict=True)
            ]
        )
        blocks = np.array([blocks_for(int(size)) for size in counts])
        first = np.cumsum(blocks) - blocks
        column = np.arange(blocks.max())
        tables = np.where(column < blocks[:, None], first[:, None] + column, -1)
        logits = self.runner.logits(
            Batch(
                ids(tokens),
                ids(counts),
                ids(np.zeros(len(batch))),
                ids(tables),
                ids(targets - 1),
                ids(-np.ones(len(batch))),
            )
        )
        wanted = torch.from_numpy(tokens[targets].astype(np.int64))
        nats = torch.logsumexp(logits, dim=-1) - logits.gather(1, wanted[:, None])[:, 0]
        owner = np.repeat([window.document for window in batch], [len(w.tokens) - w.scored_from for w in batch])
        return np.bincount(owner, nats.double().numpy(), minlength=documents).astype(np.float64)
