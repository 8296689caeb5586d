"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from liuyi.core.step import Context, Input, Output, Params, SourcePath, step
from liuyi.pretrain.ablate.steps import ablate, regmix
from liuyi.pretrain.params import DecoderParams
from liuyi.train.params import MILESTONES, ParallelParams, SamplesParams

__all__ = ("ablate", "regmix")

PRELOAD = ("torch",)


class TrainParams(DecoderParams, ParallelParams, SamplesParams):
    epochs: float = Field(1.0, gt=0, description="passes over the tokens, unless `token_budget` is given")
    token_budget: int | None = Field(None, ge=1, description="tokens to train on in all")
    branch_step: int | None = Field(None, ge=0, description="which of `milestones` to go on from; left out: the last")
    cooldown_steps: int | None = Field(
        None, ge=1, description="from the milestone on, steps in which the learning rate falls to zero, and the last"
    )

    @model_validator(mode="after")
    def _cools_down_once(self) -> Self:
        if self.cooldown_steps and self.token_budget:
            raise ValueError("'cooldown_steps' says how long the run is; leave 'token_budget' out")
        return self

    @model_validator(mode="after")
    def _rows_can_be_shared(self) -> Self:
        if self.batch_tokens:
            self.demand_shares(max(1, self.batch_tokens // self.seq_len), "rows")
        return self


@step(
    "pretrain.train",
    version=2,
    starts_again=True,
    inputs={
        "tokens": Input("tokens", "what to train on"),
        "tokenizer": Input(("tokenizer", "checkpoint"), "the one that made the tokens, or the model that has it"),
        "model": Input("checkpoint", "continue from here rather than from scratch", optional=True),
        "milestones": Input("milestones", "branch off from here, with the optimiser's state", optional=True),
    },
    outputs={"checkpoint": Output("checkpoint"), **MILESTONES},
)
def train(ctx: Context, params: TrainParams) -> None:
    """Train a decoder on tokens, from scratch or on from a checkpoint."""
    from liuyi.pretrain.train import pretrain
    from liuyi.train import launch

    launch.run(ctx, params, pretrain)


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
