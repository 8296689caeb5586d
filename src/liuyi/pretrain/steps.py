"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, SourcePath, step

PRELOAD = ("torch",)


class TrainParams(Params):
    size: str | None = Field(None, description="parameters of a new model, such as 5m; sets all that is left out below")
    hidden_size: int | None = Field(None, ge=2)
    num_hidden_layers: int | None = Field(None, ge=1)
    seq_len: int = Field(256, ge=8, description="tokens in a packed row")
    epochs: float = Field(1.0, gt=0, description="passes over the tokens, unless `token_budget` is given")
    token_budget: int | None = Field(None, ge=1, description="tokens to train on in all")
    batch_tokens: int | None = Field(None, ge=8, description="tokens in a step's global batch")
    micro_rows: int | None = Field(None, ge=1, description="rows computed at once; less takes less memory")
    init: Literal["bigram", "random"] = Field("bigram", description="what a new model knows before its first step")
    tie_embeddings: bool = Field(False, description="one matrix for embedding and head; needs `init: random`")
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
        "tokenizer": Input(("tokenizer", "checkpoint"), "the one that made the tokens, or the model that has it"),
        "model": Input("checkpoint", "continue from here rather than from scratch", optional=True),
    },
    outputs={"checkpoint": Output("checkpoint")},
)
def train(ctx: Context, params: TrainParams) -> None:
    """Train a decoder on tokens, from scratch or on from a checkpoint."""
    from liuyi.pretrain.train import pretrain

    pretrain(ctx, params)


class EvaluateParams(Params):
    window: int = Field(256, ge=8, description="tokens of context; best the `seq_len` of the training")
    max_tokens: int = Field(150_000, ge=1, description="held-out documents are drawn until so many tokens are reached")
    label: str = Field("pretrained", description="what the model is called in reports")


@step(
    "pretrain.evaluate",
    version=2,
    inputs={
        "model": Input("checkpoint"),
        "tokens": Input("tokens", "held-out documents"),
        "corpus": Input("corpus", "their texts, for xz"),
        "train_tokens": Input("tokens", "what the model was trained on, for the baselines"),
    },
    outputs={"evaluation": Output("evaluation", "bits of each document under the model and under each baseline")},
)
def evaluate(ctx: Context, params: EvaluateParams) -> None:
    """Measure bits per byte on held-out documents, beside an untrained model, unigram, 5-gram and xz."""
    from liuyi.pretrain.evaluate import evaluate_bits

    evaluate_bits(ctx, params)


class ImportParams(Params):
    folder: SourcePath = Field(description="a model folder in Hugging Face's layout, with safetensors and tokenizer")


@step("pretrain.import_hf", version=1, inputs={}, outputs={"checkpoint": Output("checkpoint")})
def import_hf(ctx: Context, params: ImportParams) -> None:
    """Take a model folder in Hugging Face's layout as the checkpoint to go on from."""
    from liuyi.model.checkpoint import load_model, save_model
    from liuyi.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(params.folder)
    model = load_model(params.folder)
    with ctx.output("checkpoint") as out:
        save_model(out.path, model, tokenizer, {"stage": "imported", "name": params.folder.resolve().name})
        out.metrics["parameters"] = model.config.num_parameters
