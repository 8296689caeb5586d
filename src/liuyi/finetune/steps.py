"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step

PRELOAD = ("torch",)


class SftParams(Params):
    epochs: float = Field(3.0, gt=0, description="passes over the conversations, unless `max_steps` is given")
    max_steps: int | None = Field(None, ge=1)
    seq_len: int = Field(256, ge=8, description="tokens in a packed row; a longer conversation is left out and named")
    batch_tokens: int = Field(4096, ge=8, description="tokens in a step's global batch, padding included")
    micro_rows: int | None = Field(None, ge=1, description="rows computed at once; less takes less memory")
    optimiser: Literal["muon", "adamw"] = "muon"
    lr: float = Field(0.005, gt=0, description="peak learning rate of the matrices")
    embed_lr: float | None = Field(None, gt=0, description="peak learning rate of embeddings, head and norms; as `lr`")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1, description="part of all steps")
    clip_norm: float = Field(1.0, gt=0)
    compute_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every_s: float = Field(20.0, gt=0)


@step(
    "finetune.sft",
    version=1,
    inputs={"model": Input("checkpoint", "what to start from"), "chats": Input("chats", "conversations to learn")},
    outputs={"checkpoint": Output("checkpoint")},
)
def sft(ctx: Context, params: SftParams) -> None:
    """Fine-tune a model on conversations; only what the assistant says is learnt."""
    from liuyi.finetune.sft import finetune

    finetune(ctx, params)
