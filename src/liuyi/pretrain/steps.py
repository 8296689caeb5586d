"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step


class TrainParams(Params):
    size: str | None = Field(None, description="parameters of a new model, such as 5m; sets all that is left out below")
    hidden_size: int | None = Field(None, ge=2)
    num_hidden_layers: int | None = Field(None, ge=1)
    seq_len: int = Field(256, ge=8, description="tokens in a packed row")
    epochs: float = Field(1.0, gt=0, description="passes over the tokens, unless `tokens_budget` is given")
    token_budget: int | None = Field(None, ge=1, description="tokens to train on in all")
    batch_tokens: int | None = Field(None, ge=8, description="tokens in a step's global batch")
    micro_rows: int | None = Field(None, ge=1, description="rows computed at once; less takes less memory")
    optimiser: Literal["muon", "adamw"] = "muon"
    lr: float | None = Field(None, gt=0, description="peak learning rate of the matrices")
    embed_lr: float | None = Field(None, gt=0, description="peak learning rate of embeddings and head")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(0.02, ge=0, lt=1, description="part of all steps")
    decay: float = Field(0.5, ge=0, le=1, description="part of all steps in which `wsd` falls to zero")
    clip_norm: float = Field(1.0, gt=0)
    compute_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every_s: float = Field(20.0, gt=0)


@step(
    "pretrain.train",
    version=1,
    inputs={
        "tokens": Input("tokens", "what to train on"),
        "tokenizer": Input("tokenizer", "the one that made the tokens"),
        "model": Input("checkpoint", "continue from here rather than from scratch", optional=True),
    },
    outputs={"checkpoint": Output("checkpoint")},
)
def train(ctx: Context, params: TrainParams) -> None:
    """Train a decoder on tokens, from scratch or on from a checkpoint."""
    from liuyi.pretrain.train import pretrain

    pretrain(ctx, params)
