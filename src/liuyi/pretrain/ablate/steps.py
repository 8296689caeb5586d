"""Ablations as steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, step
from liuyi.pretrain.params import DecoderParams


class ProxyParams(DecoderParams):
    """What proxies are like and what they are measured on."""

    size: str | None = Field("1m", description="parameters of each proxy")
    token_budget: int = Field(400_000, ge=1, description="tokens that each proxy trains on, rounded up to batches")
    heldout_tokens: int = Field(100_000, ge=1, description="held-out documents are drawn until so many tokens, a set")
    heldout_labels: tuple[str, ...] = Field((), description="what reports call the held-out sets, in their order")
    seeds: int = Field(3, ge=2, description="proxies an arm, each with a seed of its own, the same seeds in all arms")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence of intervals; decisions are at 1 - level")
    title: str = Field("", description="the heading in the report")


class AblateParams(ProxyParams):
    labels: tuple[str, ...] = Field((), description="what reports call the arms, in their order")
    baseline: str = Field("", description="label of the arm that the others are compared with; empty: the first")
    pairs: Literal["baseline", "all"] = Field("baseline", description="compare with the baseline only, or every pair")
    points: int = Field(4, ge=1, description="how often a proxy is measured while it trains, for the curve")


class RegmixParams(ProxyParams):
    labels: tuple[str, ...] = Field((), description="what reports call the sources, in their order")
    runs: int = Field(32, ge=8, description="sampled mixtures, a proxy each")
    max_epochs: float = Field(4.0, gt=0, description="how often a source may be gone through")
    target_tokens: int | None = Field(
        None, ge=1, description="budget of the training that the mixture is for; empty: that of a proxy"
    )


@step(
    "pretrain.ablate",
    version=1,
    starts_again=True,
    inputs={
        "arms": Input("tokens", "what to compare, each made by its own recipe with one tokenizer", many=True),
        "heldout": Input("tokens", "documents that are in no arm; several sets are judged apart", many=True),
        "tokenizer": Input(("tokenizer", "checkpoint"), "the one that made all the tokens"),
    },
    outputs={"verdict": Output("verdict", "which data is better; losses.parquet and curves.parquet beside it")},
)
def ablate(ctx: Context, params: AblateParams) -> None:
    """Which data is better? Train small proxies alike on each arm and compare them on the same held-out text."""
    from liuyi.pretrain.ablate.run import ablate

    ablate(ctx, params)


@step(
    "pretrain.regmix",
    version=2,
    starts_again=True,
    inputs={
        "sources": Input("tokens", "what to mix, all with one tokenizer", many=True),
        "heldout": Input("tokens", "documents that are in no source; the loss is the mean over the sets", many=True),
        "tokenizer": Input(("tokenizer", "checkpoint"), "the one that made all the tokens"),
    },
    outputs={"verdict": Output("verdict", "whether the proposed mixture is better; its weights.json, runs.parquet")},
)
def regmix(ctx: Context, params: RegmixParams) -> None:
    """Which mixture? Learn from many small runs what a mixture's loss will be, propose the best, and check it."""
    from liuyi.pretrain.ablate.regmix import regmix

    regmix(ctx, params)
