"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from liuyi.core.step import BesideKey, Context, Input, Output, Params, step
from liuyi.finetune.tuning import TUNED_OUTPUTS, TuningParams
from liuyi.train.params import MOST_BATCH_TOKENS, MOST_ROW_TOKENS, ComputeDtype, MaxSteps, SamplesParams, Schedule

PRELOAD = ("torch",)


class SftParams(TuningParams, SamplesParams):
    epochs: float = Field(3.0, gt=0, description="passes over the conversations, unless `max_steps` is given")
    max_steps: MaxSteps = None
    seq_len: int = Field(
        1024,
        ge=8,
        le=MOST_ROW_TOKENS,
        description="tokens in a packed row; what is longer, or beyond the model's context, is left out",
    )
    batch_tokens: int = Field(
        4096, ge=8, le=MOST_BATCH_TOKENS, description="tokens in a step's global batch, padding included"
    )
    micro_rows: int | None = Field(None, ge=1, description="rows computed at once; less takes less memory")
    optimiser: Literal["muon", "adamw", "adamw8bit"] | None = Field(
        None, description="muon, and adamw for adapters, when left out"
    )
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; 0.005, and 0.0002 for adapters, when left out"
    )
    embed_lr: float | None = Field(None, gt=0, description="peak learning rate of embeddings and head; as `lr`")
    weight_decay: float = Field(0.0, ge=0, description="of the matrices inside the layers; a step takes lr times it")
    embed_weight_decay: float = Field(0.0, ge=0, description="of embeddings and head")
    norm_weight_decay: float = Field(0.0, ge=0, description="of norms and biases")
    schedule: Schedule = "linear"
    warmup: float = Field(0.03, ge=0, lt=1, description="part of all steps")
    neftune_alpha: float = Field(0.0, ge=0, description="noise on the embeddings (NEFTune); 5 to 15 are usual")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is what is published; 0.999 is usual"
    )
    compute_dtype: ComputeDtype = "auto"
    fp8: bool = Field(False, description="multiply the layers' matrices in eight-bit floats; for GPUs that can")
    compile: Annotated[bool, BesideKey] = Field(
        False, description="compile the layers: faster on GPUs, some ten seconds before the first step"
    )

    @model_validator(mode="after")
    def _rows_can_be_shared(self) -> Self:
        self.demand_shares(max(1, self.batch_tokens // self.seq_len), "rows")
        return self

    @model_validator(mode="after")
    def _noise_has_whole_rows(self) -> Self:
        if self.neftune_alpha and self.context > 1:
            raise ValueError("'neftune_alpha' is for whole rows, and with 'context' a process has parts of them")
        return self


@step(
    "finetune.sft",
    version=3,
    inputs={"model": Input("checkpoint", "what to start from"), "chats": Input("chats", "conversations to learn")},
    outputs=TUNED_OUTPUTS,
    starts_again=True,
)
def sft(ctx: Context, params: SftParams) -> None:
    """Fine-tune a model on conversations; only what the assistant says is learnt."""
    from liuyi.finetune.sft import finetune
    from liuyi.train import launch

    launch.run(ctx, params, finetune)


class MergeParams(Params):
    format: Literal["stored", "fp32", "bf16", "int8", "int4"] = Field(
        "stored", description="number format of the merged weights; stored: the model's own"
    )
    text_tokens: int = Field(2048, ge=2, description="tokens of the corpus or eval set that logits are compared on")


@step(
    "finetune.merge",
    version=2,
    inputs={
        "model": Input("checkpoint", "the model that the adapter was trained on, or its quantised copy"),
        "adapter": Input("adapter"),
        "corpus": Input("corpus", "documents to compare logits on", optional=True),
        "evalset": Input("evalset", "conversations to compare them on, where there is no corpus", optional=True),
    },
    outputs={"checkpoint": Output("checkpoint", "the model with the adapter in its weights")},
)
def merge(ctx: Context, params: MergeParams) -> None:
    """Put an adapter into a model's weights, and measure what their number format makes of it."""
    from liuyi.finetune.merge import merge_step

    merge_step(ctx, params)
