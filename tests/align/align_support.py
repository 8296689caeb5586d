"""A tokenizer, a model of a few thousand values, and preferences that can be learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import small_models
from liuyi.core.artifact import Artifact
from liuyi.core.home import Home
from liuyi.model.chat import encode_chat
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.batches import ShuffledBatches

PLACES = ("kitchen", "hall", "garden", "office")


def small_tokenizer() -> Tokenizer:
    return train_bpe(["turn on off the light in kitchen hall garden office yes no"], 300)


def small_model(vocab_size: int, seed: int = 1) -> Decoder:
    return small_models.small_model(vocab_size, seed, std=0.1)


def preferences(count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{n}",
            "prompt": [{"role": "user", "content": f"light in the {PLACES[n % 4]} {'on' if n % 3 else 'off'} {n}"}],
            "chosen": f"{PLACES[n % 4]} yes",
            "rejected": f"no {PLACES[(n + 1) % 4]}",
        }
        for n in range(count)
    ]


def alone(model: Decoder, tokenizer: Tokenizer, row: dict[str, Any], side: str) -> float:
    """Log-probability of one answer, from one unpadded forward pass."""
    ids, said = encode_chat(tokenizer, [*row["prompt"], {"role": "assistant", "content": row[side]}])
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([ids]))).log_softmax(-1)[0]
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)) if said[at])


def publish(home: Home, tokenizer: Tokenizer, table: Sequence[dict[str, Any]], model: Decoder) -> dict[str, Artifact]:
    """The inputs of a step: a model, and preferences."""
    staging = home.store.stage("preferences")
    columns = {name: [row.get(name) for row in table] for name in ("id", "chosen", "rejected")}
    columns["prompt"] = [json.dumps(row["prompt"]) for row in table]
    if any("margin" in row for row in table):
        columns["margin"] = [row["margin"] for row in table]
    pq.write_table(pa.table(columns), staging.path / "preferences.parquet")
    chosen = home.store.publish(staging)
    staging = home.store.stage("checkpoint")
    save_model(staging.path, model, tokenizer)
    return {"model": home.store.publish(staging), "preferences": chosen}


def with_reference(
    rows: Any, model: Decoder, compute_dtype: torch.dtype = torch.float32, at_once: int | None = None
) -> Any:
    """The rows, with their reference taken in batches of so many."""
    batches: ShuffledBatches[Any] = ShuffledBatches(rows, batch_rows=at_once or len(rows), seed=0)
    rows.take_reference(batches, model, compute_dtype)
    return rows


def golden_head(hidden_size: int) -> torch.Tensor:
    """The value head `[1, hidden]` of the golden reward model."""
    return torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(3))
