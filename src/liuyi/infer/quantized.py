"""A quantised copy of a model folder, and how far it is from what it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from liuyi.infer.agreement import Agreement, agreement, decoder_logits, runner_logits, score
from liuyi.infer.open import open_runner
from liuyi.model.chat import encode_chat
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.quantize import Format, quantize, weight_error
from liuyi.model.tokenizer import Tokenizer

TEXT_TOKENS = 512
"""The most tokens of one text that are scored."""


def quantize_folder(
    source: Path,
    target: Path,
    fmt: Format,
    texts: Sequence[Sequence[int]] = (),
    fit_to: Sequence[Sequence[int]] = (),
) -> tuple[dict[str, float], Agreement | None]:
    """Write the model in `source` with quantised matrices to `target`, its tokenizer with it.

    int4 is fitted to the texts `fit_to` (token ids).

    Gives the error of the weights relative to their size, the mean over the matrices and the largest; and, where
    there are texts (token ids), how near the copy is on them to the model in float32, computed as it is served.
    Raises ModelError if the model cannot be read or is quantised already.
    """
    model = load_model(source)
    small = quantize(model, fmt, fit_to)
    save_model(target, small, source)
    error = weight_error(model, small)
    if not texts:
        return error, None
    exact = score(decoder_logits(model), texts)
    runner = open_runner(small, kv_tokens=max(len(text) for text in texts))
    return error, agreement(exact, score(runner_logits(runner), texts))


def corpus_texts(folder: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of a corpus's documents."""
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(folder / "documents.parquet").iter_batches(64, columns=["text"])
    return (tokenizer.encode(text) for batch in batches for text in batch.column("text").to_pylist())


def evalset_texts(folder: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of an eval set's conversations with the answers that it wants."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "items.parquet", columns=["messages", "reference"]).to_pylist()
    conversations = ([*json.loads(row["messages"]), {"role": "assistant", "content": row["reference"]}] for row in rows)
    return (encode_chat(tokenizer, messages)[0] for messages in conversations)


def take(texts: Iterable[list[int]], tokens: int) -> list[list[int]]:
    """The next texts of some, the beginning of each, `tokens` in all."""
    if tokens < 2:
        return []
    kept: list[list[int]] = []
    left = tokens
    for text in texts:
        text = text[: min(left, TEXT_TOKENS)]
        if len(text) > 1:
            kept.append(text)
            left -= len(text)
        if left < 2:
            break
    return kept
