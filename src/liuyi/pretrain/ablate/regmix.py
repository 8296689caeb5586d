"""RegMix: the mixture that many small runs say is best, and whether it is (Liu et al. 2024, arXiv 2407.01492).

Proxies are trained on sampled mixtures of the sources; a regression learns their held-out loss from the mixture; the
mixture with the least predicted loss is trained and compared with natural and even proportions. How this departs from
the paper: tens of runs in place of hundreds, so mixtures are sampled less far out and the regression is a ridge on
simple features, chosen by predicting runs left out, in place of boosted trees.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from liuyi.core.effect import Block, Curves, Series, Table
from liuyi.core.errors import DataError
from liuyi.core.step import Context, Staging
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.ablate.decide import UNIT, Results, decide, ruling
from liuyi.pretrain.ablate.difference import Floats
from liuyi.pretrain.ablate.heldout import HeldOut, demand_apart, demand_one_tokenizer, load_heldout
from liuyi.pretrain.ablate.mixtures import Source, bounded, drawn_shares, mixed_stream, sample_mixtures
from liuyi.pretrain.ablate.proxies import Measured, Plan, Proxy
from liuyi.pretrain.ablate.regression import Fit, fit_all, prediction_interval, propose
from liuyi.pretrain.ablate.report import Setting, write_verdict
from liuyi.pretrain.ablate.run import document_ids, labels_for, proxy_seed, same_dtype
from liuyi.pretrain.ablate.workers import train_proxies
from liuyi.pretrain.train import fresh_model
from liuyi.train.mixture import natural_weights

if TYPE_CHECKING:
    from liuyi.pretrain.ablate.steps import RegmixParams

WEIGHTS = "weights.json"
RUNS = "runs.parquet"
CANDIDATES = 20_000
TRUSTED = 0.5
"""A rank correlation on runs left out below this says that the regression has learnt next to nothing."""
NATURAL, EVEN, PROPOSED = "natural", "even", "proposed"


@dataclass(frozen=True)
class Search:
    """What the sampled runs gave: their mixtures, their losses and what was learnt from them."""

    labels: Sequence[str]
    mixtures: Floats
    losses: Floats
    fits: Sequence[Fit]
    proposal: Floats
    interval: tuple[float, float]

    @property
    def chosen(self) -> Fit:
        return self.fits[0]

    @property
    def doubt(self) -> str:
        """Why the proposal is not to be trusted; empty where nothing speaks against it."""
        if self.chosen.rank_correlation >= TRUSTED:
            return ""
        return "the runs say next to nothing about mixtures, so the proposal is a guess: give more tokens or more runs"


def regmix(ctx: Context, params: RegmixParams) -> None:
    """Search as `params` say, confirm what was found, and publish the verdict.

    Raises DataError where inputs do not fit each other or held-out documents are trained on.
    """
    given = ctx.inputs("sources")
    labels = labels_for(given, params.labels, "source", "labels")
    if len(given) < 2:
        raise DataError("one source makes no mixture", hint="give the input 'sources' two or more artifacts")
    texts = ctx.inputs("heldout")
    heldout_labels = labels_for(texts, params.heldout_labels, "held-out", "heldout_labels")
    heldout = load_heldout(texts, heldout_labels, params.heldout_tokens, ctx.seed)
    demand_apart(zip(labels, map(document_ids, given), strict=True), heldout)
    sources = [Source.load(artifact.path, label) for artifact, label in zip(given, labels, strict=True)]
    demand_one_tokenizer([(source.label, source.stream) for source in sources], heldout)
    tokenizer = Tokenizer.load(ctx.input("tokenizer").path)
    plan = Plan(same_dtype(ctx, params), params.token_budget, 1, tokenizer, heldout)
    search = _search(ctx, params, sources, plan)
    ctx.log(_said(search))
    if search.doubt:
        ctx.log(search.doubt)
    results = _confirm(ctx, params, sources, plan, search.proposal)
    contests = decide(results, heldout, NATURAL, "all", params.level)
    decision, arm = ruling(contests, NATURAL)
    setting = Setting(
        parameters=fresh_model(plan.params, sources[0].stream, tokenizer).config.num_parameters,
        token_budget=params.token_budget,
        seeds=params.seeds,
        arm_tokens={},
    )
    with ctx.output("verdict") as out:
        effect = write_verdict(
            out,
            results,
            heldout,
            contests,
            decision,
            arm,
            setting,
            title=params.title or "Search for a mixture",
            more=_blocks(search, results, heldout),
        )
        _write(out, search)
        out.licences.update(*(artifact.manifest.licences for artifact in (*given, *texts)))
    ctx.log(effect.summary)


def _search(ctx: Context, params: RegmixParams, sources: Sequence[Source], plan: Plan) -> Search:
    sizes = [len(source.stream) for source in sources]
    rng = np.random.default_rng(ctx.seed)
    natural = natural_weights(sizes)
    prior = (np.array(natural) + 1 / len(sizes)) / 2
    sampled = sample_mixtures(prior.tolist(), params.runs, rng)
    mixtures = bounded(sampled, sizes, params.token_budget, params.max_epochs)
    candidates = sample_mixtures(prior.tolist(), CANDIDATES, rng)
    candidates = candidates[_affordable(candidates, sizes, params)]
    if not len(candidates):
        target = params.target_tokens or params.token_budget
        raise DataError(
            f"no mixture gives {target:,} tokens within {params.max_epochs:g} passes over each source",
            hint="lower target_tokens or raise max_epochs",
        )
    wanted = [
        (mixture.tolist(), params.token_budget, proxy_seed(ctx.seed, number)) for number, mixture in enumerate(mixtures)
    ]
    proxies = [
        Proxy(f"run{number}", partial(mixed_stream, sources, *one), one[-1]) for number, one in enumerate(wanted)
    ]
    # The regression learns from what a proxy was really trained on.
    mixtures = np.stack([drawn_shares(sources, *one) for one in wanted])
    measured = train_proxies(ctx, proxies, plan, after=3 * params.seeds)
    losses = np.array([mean_loss(one, plan.heldout) for one in measured])
    fits = fit_all(mixtures, losses)
    proposal = propose(fits[0], candidates)
    interval = prediction_interval(fits[0], mixtures, losses, proposal, params.level, rng)
    return Search([source.label for source in sources], mixtures, losses, fits, proposal, interval)


def _affordable(candidates: Floats, sizes: Sequence[int], params: RegmixParams) -> Floats:
    """Which candidates the training that they are for can have without repeating a source too often."""
    most = params.max_epochs * np.array(sizes) / (params.target_tokens or params.token_budget)
    return np.asarray((candidates <= most).all(axis=1))


def _confirm(
    ctx: Context, params: RegmixParams, sources: Sequence[Source], plan: Plan, proposal: Floats
) -> dict[str, list[Measured]]:
    """Proxies of natural, even and proposed proportions, `seeds` of each."""
    sizes = [len(source.stream) for source in sources]
    wanted = {NATURAL: natural_weights(sizes), EVEN: [1 / len(sizes)] * len(sizes), PROPOSED: proposal.tolist()}
    names = list(wanted)
    weights = bounded(np.array(list(wanted.values())), sizes, params.token_budget, params.max_epochs)
    # Other seeds than those of the search: what was lucky there shall not be lucky again.
    seeds = [proxy_seed(ctx.seed, params.runs + number) for number in range(params.seeds)]
    proxies = [
        Proxy(f"{name}-seed{number}", partial(mixed_stream, sources, mixture.tolist(), params.token_budget, seed), seed)
        for number, seed in enumerate(seeds)
        for name, mixture in zip(names, weights, strict=True)
    ]
    measured = train_proxies(ctx, proxies, plan, before=params.runs)
    return {name: measured[at :: len(names)] for at, name in enumerate(names)}


def mean_loss(measured: Measured, heldout: Sequence[HeldOut]) -> float:
    """Bits per byte at the end, the mean over the held-out sets."""
    return float(np.mean([text.bits_per_byte(measured.bits[at][-1]) for at, text in enumerate(heldout)]))


def _said(search: Search) -> str:
    mixture = ", ".join(f"{label} {weight:.1%}" for label, weight in zip(search.labels, search.proposal, strict=True))
    low, high = search.interval
    return (
        f"proposed: {mixture}; predicted {low:.3f} … {high:.3f} {UNIT} by {search.chosen.name} features, "
        f"rank correlation on runs left out {search.chosen.rank_correlation:.2f}"
    )


def _blocks(search: Search, results: Results, heldout: Sequence[HeldOut]) -> list[Block]:
    measured = {name: float(np.mean([mean_loss(one, heldout) for one in many])) for name, many in results.items()}
    low, high = search.interval
    mixture = Table(
        title="Proposed mixture",
        columns=("source", "weight", "in the best run"),
        rows=tuple(
            (label, f"{weight:.1%}", f"{best:.1%}")
            for label, weight, best in zip(
                search.labels, search.proposal, search.mixtures[np.argmin(search.losses)], strict=True
            )
        ),
        note=(
            f"predicted {low:.4f} … {high:.4f} {UNIT} for one run; measured {measured[PROPOSED]:.4f}, natural "
            f"{measured[NATURAL]:.4f}, even {measured[EVEN]:.4f}, best sampled run {search.losses.min():.4f}"
        ),
    )
    models = Table(
        title="Regressions, on runs left out",
        columns=("features", "ridge", "rank correlation", "error"),
        rows=tuple((one.name, f"{one.ridge:g}", one.rank_correlation, one.error) for one in search.fits),
        note=search.doubt
        or f"{len(search.losses)} runs; the first is used, and was chosen by these figures, which flatters it",
    )
    return [mixture, models, _scatter(search, measured[PROPOSED])]


def _scatter(search: Search, measured: float) -> Curves:
    predicted = float(search.chosen.predict(search.proposal[None])[0])
    ends = (float(search.losses.min()), float(search.losses.max()))
    return Curves(
        title="Predicted and measured",
        x_label=f"predicted {UNIT}",
        y_label=f"measured {UNIT}",
        series=(
            Series(
                name="runs, each predicted from the others",
                x=tuple(search.chosen.left_out.tolist()),
                y=tuple(search.losses.tolist()),
                dots=True,
            ),
            Series(name="proposed, mean over seeds", x=(predicted,), y=(measured,), dots=True),
            Series(name="as predicted", x=ends, y=ends),
        ),
    )


def _write(out: Staging, search: Search) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    weights = dict(zip(search.labels, (round(float(one), 6) for one in search.proposal), strict=True))
    (out.path / WEIGHTS).write_text(json.dumps(weights, indent=1, ensure_ascii=False), encoding="utf-8")
    columns = {f"weight_{label}": search.mixtures[:, at] for at, label in enumerate(search.labels)}
    table = pa.table({**columns, "bits_per_byte": search.losses, "predicted": search.chosen.left_out})
    pq.write_table(table, out.path / RUNS)
    out.metrics["rank_correlation"] = search.chosen.rank_correlation
