"""The ablation from its inputs to its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, did_you_mean
from liuyi.core.step import Context
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.ablate.decide import Results, decide, ruling
from liuyi.pretrain.ablate.heldout import demand_apart, demand_one_tokenizer, load_heldout
from liuyi.pretrain.ablate.proxies import Plan, Proxy
from liuyi.pretrain.ablate.report import Setting, write_verdict
from liuyi.pretrain.ablate.workers import train_proxies
from liuyi.pretrain.params import DecoderParams
from liuyi.pretrain.train import fresh_model
from liuyi.train.data import TokenStream
from liuyi.train.lm import choose_compute_dtype

if TYPE_CHECKING:
    from liuyi.pretrain.ablate.steps import AblateParams


def ablate(ctx: Context, params: AblateParams) -> None:
    """Train and compare as `params` say and publish the verdict.

    Raises DataError where labels do not fit the inputs or held-out documents are trained on, ModelError where tokens
    and tokenizer do not belong together.
    """
    arms = ctx.inputs("arms")
    labels = labels_for(arms, params.labels, "arm", "labels")
    baseline = params.baseline or labels[0]
    if baseline not in labels:
        raise DataError(f"there is no arm '{baseline}' to compare with", hint=did_you_mean(baseline, labels))
    if len(arms) < 2:
        raise DataError("one arm cannot be compared with anything", hint="give the input 'arms' two or more artifacts")
    texts = ctx.inputs("heldout")
    heldout_labels = labels_for(texts, params.heldout_labels, "held-out", "heldout_labels")
    heldout = load_heldout(texts, heldout_labels, params.heldout_tokens, ctx.seed)
    demand_apart(zip(labels, map(document_ids, arms), strict=True), heldout)
    streams = {label: TokenStream(arm.path) for label, arm in zip(labels, arms, strict=True)}
    demand_one_tokenizer(streams.items(), heldout)
    tokenizer = Tokenizer.load(ctx.input("tokenizer").path)
    plan = Plan(same_dtype(ctx, params), params.token_budget, params.points, tokenizer, heldout)
    for label, stream in streams.items():
        passes = params.token_budget / len(stream)
        ctx.log(f"{label}: {len(stream):,} tokens, {passes:.2g} passes in a budget of {params.token_budget:,}")
    proxies = [
        Proxy(f"arm{number}-seed{seed}", partial(TokenStream, arm.path), proxy_seed(ctx.seed, seed))
        for seed in range(params.seeds)
        for number, arm in enumerate(arms)
    ]
    measured = train_proxies(ctx, proxies, plan)
    results: Results = {label: measured[number :: len(arms)] for number, label in enumerate(labels)}
    contests = decide(results, heldout, baseline, params.pairs, params.level)
    decision, chosen = ruling(contests, baseline)
    setting = Setting(
        parameters=fresh_model(plan.params, streams[labels[0]], tokenizer).config.num_parameters,
        token_budget=params.token_budget,
        seeds=params.seeds,
        arm_tokens={label: len(stream) for label, stream in streams.items()},
    )
    with ctx.output("verdict") as out:
        effect = write_verdict(
            out, results, heldout, contests, decision, chosen, setting, title=params.title or "Ablation of data"
        )
        out.licences.update(*(artifact.manifest.licences for artifact in (*arms, *texts)))
    ctx.log(effect.summary)


def labels_for(artifacts: Sequence[Artifact], labels: Sequence[str], what: str, param: str) -> list[str]:
    """A name for each artifact: the given ones, or numbered.

    Raises DataError where they do not fit.
    """
    if not labels:
        return [f"{what} {number}" for number in range(1, len(artifacts) + 1)]
    if len(labels) != len(artifacts) or len(set(labels)) != len(labels):
        raise DataError(
            f"{len(artifacts)} artifacts have {len(set(labels))} different labels",
            where=param,
            hint="give one for each, in the order of the input",
        )
    return list(labels)


def document_ids(artifact: Artifact) -> list[str]:
    """The ids of the documents in a tokens artifact."""
    import pyarrow.parquet as pq

    ids: list[str] = pq.read_table(artifact.file("documents.parquet"), columns=["id"])["id"].to_pylist()
    return ids


def same_dtype(ctx: Context, params: DecoderParams) -> DecoderParams:
    """The same parameters with `compute_dtype: auto` settled, so that every proxy computes alike."""
    chosen = choose_compute_dtype(params.compute_dtype, ctx.workdir)
    return params.model_copy(update={"compute_dtype": "bf16" if chosen is torch.bfloat16 else "fp32"})


def proxy_seed(seed: int, number: int) -> int:
    """The seed of the proxies that are number `number` in their arms; it is the same in every arm."""
    return (seed + number) % 2**31
