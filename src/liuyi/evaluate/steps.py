"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from liuyi.core.artifact import KINDS
from liuyi.core.effect import Stage
from liuyi.core.errors import DataError
from liuyi.core.step import Context, Input, Output, Params, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from liuyi.evaluate.contamination import Hit
    from liuyi.evaluate.evaluation import Evaluation


PRELOAD = ("torch", "scipy.stats")


class GenerateParams(Params):
    label: str = Field("", description="what reports call this model, such as `SFT`; empty: before or after")
    constrained: bool = Field(False, description="force answers to follow the eval set's JSON Schema")
    max_tokens: int = Field(128, ge=1, description="tokens an answer may have")
    slots: int = Field(64, ge=1, description="answers written at the same time")
    items: int = Field(0, ge=0, description="only the first so many items; 0 for all")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="number format of the weights that are not quantised")


@step(
    "evaluate.generate",
    version=3,
    inputs={
        "model": Input("checkpoint", "who answers"),
        "evalset": Input("evalset", "what is asked"),
        "adapter": Input("adapter", "what is put into the model's weights first", optional=True),
    },
    outputs={"evaluation": Output("evaluation", "an answer, its log-probability and its scores for every item")},
)
def generate_step(ctx: Context, params: GenerateParams) -> None:
    """Let a model answer an eval set, greedily, and score every answer."""
    import torch

    from liuyi.evaluate.generate import Evalset, generate, score_completions
    from liuyi.infer.engine import Engine
    from liuyi.infer.open import open_evaluated
    from liuyi.model.adapter import Adapter
    from liuyi.model.checkpoint import load_model
    from liuyi.model.merge import merge_adapter
    from liuyi.model.tokenizer import Tokenizer

    model, given = ctx.input("model"), ctx.input("evalset")
    evalset = Evalset.load(given.path, given.digest).first(params.items)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[params.dtype]
    slots = min(params.slots, len(evalset.items))
    decoder, subject = load_model(model.path, dtype=dtype), model.digest
    if ctx.has("adapter"):
        subject = ctx.input("adapter").digest
        decoder, _ = merge_adapter(decoder, Adapter.load(ctx.input("adapter").path))
    runner = open_evaluated(decoder, slots=slots)
    engine = Engine(runner, Tokenizer.load(model.path), max_slots=slots, seed=ctx.seed)
    completions = generate(
        engine,
        evalset,
        max_tokens=params.max_tokens,
        constrained=params.constrained,
        on_progress=lambda done, total: ctx.progress(done, total, "items"),
    )
    if unasked := sum(not completion.token_ids for completion in completions):
        ctx.log(f"{unasked} of {len(completions)} items leave the model's context no room, and count as answered wrong")
    evaluation = score_completions(evalset, completions, subject=subject, label=params.label, runner=runner.name)
    with ctx.output("evaluation") as out:
        figures = evaluation.save(out.path, seed=ctx.seed)
        out.metrics.update({name: figure.mean for name, figure in figures.items()})
        out.licences.update(str(item.get("license") or "") for item in evalset.items)
        out.licences.discard("")


class ContestParams(Params):
    stage: Stage = Field(description="the stage that this proves")
    title: str = Field("", description="the heading in the report; empty: the stage's name")
    metric: str = Field("", description="the metric that decides, fixed beforehand; empty: the eval set's first")
    also: tuple[str, ...] = Field((), description="further metrics to show")
    subsets: tuple[Literal["lang", "kind"], ...] = Field(("lang",), description="show the metric for each of these")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence of intervals; decisions are at 1 − level")
    ngram: int = Field(13, ge=4, description="words in a row that count as contamination")


_CONTEST_INPUTS = {
    "training": Input(
        ("corpus", "chats", "preferences"),
        "what the models saw: items found there are shown apart",
        optional=True,
        many=True,
    )
}


class CompareParams(ContestParams):
    baselines: tuple[str, ...] = Field((), description="columns of `before` that the metric's column is compared with")
    name: str = Field("", description="what reports call the metric; empty: as the evaluation says")
    names: dict[str, str] = Field(default_factory=dict, description="what reports call a column or a further metric")
    per: str = Field("", description="column of denominators, such as `bytes`: the metric is a ratio of sums")
    unit: str | None = Field(None, description="unit of the metric, `%` for shares; empty: as the evaluation says")
    better: Literal["higher", "lower"] | None = Field(None, description="which way is better, if the evaluation errs")


@step(
    "evaluate.compare",
    version=2,
    inputs={
        "before": Input("evaluation", "the figures before the stage"),
        "after": Input(
            "evaluation", "the figures after it; without it, columns of `before` are compared", optional=True
        ),
        **_CONTEST_INPUTS,
    },
    outputs={"verdict": Output("verdict", "the comparisons and what they prove")},
)
def compare_step(ctx: Context, params: CompareParams) -> None:
    """Compare before with after on the same items: difference, interval, test, and what the test could see."""
    from dataclasses import replace

    from liuyi.evaluate.judge import Contest, Ruling, as_metric, decide_all, reasons_over
    from liuyi.evaluate.stats import adjust
    from liuyi.evaluate.verdict import write_verdict

    before = _evaluation(ctx, "before")
    after = _evaluation(ctx, "after") if ctx.has("after") else before
    if not ctx.has("after") and not params.baselines:
        raise DataError("there is nothing to compare with", hint="give the input 'after', or the parameter 'baselines'")
    metric = params.metric or next(iter(after.metrics), "")
    said = as_metric(
        after.metric(metric),
        per=params.per,
        unit=params.unit,
        better=params.better,
        title=params.name,
    )
    after = replace(after, metrics={**after.metrics, metric: said})
    contest = Contest.of(before, after, level=params.level, seed=ctx.seed)
    if params.baselines:
        columns = {**{name: known.title for name, known in before.metrics.items()}, **params.names}
        compared = [
            contest.compare(
                metric,
                against=column,
                before_name=columns.get(column, column),
                after_name=columns.get(metric, said.title),
                title=params.name or said.unit,
            )
            for column in params.baselines
        ]
    else:
        compared = [contest.compare(metric)]
    decision, whole = decide_all(compared)
    shown = [*whole, *(contest.compare(name, title=params.names.get(name, "")) for name in params.also)]
    hits = _contamination(ctx, params, contest.after)
    parts = [] if params.baselines else contest.subsets(metric, params.subsets) + contest.split(metric, list(hits))
    than = " than every baseline" if len(compared) > 1 else ""
    rule = f"{compared[0].metric} proven better{than} (p < {1 - params.level:g})"
    ruling = Ruling(decision, rule, (*shown, *adjust(parts)), reasons_over(whole))
    with ctx.output("verdict") as out:
        write_verdict(out, ruling, contest, metric, stage=params.stage, title=params.title, hits=hits)


class GateParams(ContestParams):
    mode: Literal["superiority", "noninferiority"] = Field(
        "superiority", description="promote what is proven better, or also what is proven no worse than the margin"
    )
    margin: float | None = Field(
        None,
        gt=0,
        description="how much worse is acceptable, in the metric's unit; shares are 0 … 1: two points are 0.02",
    )
    guards: dict[str, float] = Field(
        default_factory=dict, description="metrics that must be proven no worse than a margin: {valid_json: 0.02}"
    )


@step(
    "evaluate.gate",
    version=1,
    inputs={
        "incumbent": Input("checkpoint", "the model that stays unless the candidate is proven"),
        "candidate": Input("checkpoint", "the model that wants its place"),
        "before": Input("evaluation", "the incumbent's evaluation"),
        "after": Input("evaluation", "the candidate's evaluation on the same eval set"),
        **_CONTEST_INPUTS,
    },
    outputs={
        "checkpoint": Output("checkpoint", "the winner, byte for byte"),
        "verdict": Output("verdict", "promoted, held or reverted, and why"),
    },
)
def gate_step(ctx: Context, params: GateParams) -> None:
    """Promote a candidate that is proven, or keep the incumbent."""
    from liuyi.evaluate.judge import Contest, Ruling, decide
    from liuyi.evaluate.stats import adjust
    from liuyi.evaluate.verdict import copy_artifact, write_verdict

    incumbent, candidate = ctx.input("incumbent"), ctx.input("candidate")
    before, after = _evaluation(ctx, "before"), _evaluation(ctx, "after")
    for name, evaluation, model in (("before", before, incumbent), ("after", after, candidate)):
        if evaluation.subject != model.digest:
            raise DataError(
                f"'{name}' evaluates {evaluation.subject[:12] or 'something unnamed'}, not {model.digest[:12]}",
                where=ctx.name,
                hint="'before' belongs to the incumbent, 'after' to the candidate",
            )
    metric = params.metric or next(iter(after.metrics), "")
    contest = Contest.of(before, after, level=params.level, seed=ctx.seed)
    ruling = decide(contest, metric, mode=params.mode, margin=params.margin, guards=params.guards)
    hits = _contamination(ctx, params, contest.after)
    parts = adjust(contest.subsets(metric, params.subsets) + contest.split(metric, list(hits)))
    further = [contest.compare(name) for name in params.also]
    ruling = Ruling(ruling.decision, ruling.rule, (*ruling.comparisons, *further, *parts), ruling.reasons)
    with ctx.output("checkpoint") as out:
        copy_artifact(candidate if ruling.decision == "promoted" else incumbent, out)
    with ctx.output("verdict") as out:
        write_verdict(out, ruling, contest, metric, stage=params.stage, title=params.title, hits=hits)


class ReportParams(Params):
    title: str = Field("", description="the report's heading; empty: Effect report")


@step(
    "evaluate.report",
    version=1,
    inputs={"effects": Input(tuple(KINDS), "artifacts with an effect, in the order of the path", many=True)},  # type: ignore[arg-type]
    outputs={"report": Output("report", "report.html, which needs nothing else, and report.json")},
)
def report_step(ctx: Context, params: ReportParams) -> None:
    """Gather what every stage has to show into one page."""
    from liuyi.evaluate.report import build_report, write_report

    report = build_report(ctx.inputs("effects"), title=params.title)
    if not report.sections:
        raise DataError("none of the artifacts has an effect to report", where=ctx.name)
    with ctx.output("report") as out:
        write_report(report, out.path)
        out.metrics["stages"] = len(report.sections)
        out.metrics["comparisons"] = sum(len(section.effect.comparisons) for section in report.sections)


def _evaluation(ctx: Context, port: str) -> Evaluation:
    from liuyi.evaluate.evaluation import Evaluation

    artifact = ctx.input(port)
    return Evaluation.load(artifact.path, where=f"{port} ({artifact.digest[:12]})")


def _contamination(ctx: Context, params: ContestParams, evaluation: Evaluation) -> dict[int, Hit]:
    """The items found in the training data by row; empty if none was given."""
    from liuyi.evaluate.contamination import contaminated, training_texts

    given = ctx.inputs("training")
    if not given:
        return {}
    prompts: Sequence[str] = evaluation.texts("prompt")
    if not any(prompts):
        raise DataError("the evaluation keeps no prompts to look for", where=evaluation.where)
    texts = (
        (f"{artifact.kind} {artifact.digest[:12]}: {id}", text)
        for artifact in given
        for id, text in training_texts(artifact.kind, artifact.path)
    )
    return contaminated(prompts, texts, ngram=params.ngram)
