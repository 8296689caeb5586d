"""Where learned quality meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, SourcePath, step


class TrainClassifierParams(Params):
    labelled: SourcePath | None = Field(
        None,
        description="rows (jsonl, json, csv, tsv, parquet; a file or a folder) with `text`, `label` (good or bad), and "
        "`cluster` where several belong together",
    )
    max_examples: int = Field(2000, ge=20, description="examples of each kind; the time grows with their cube")


@step(
    "data.train_classifier",
    version=2,
    inputs={
        "good": Input("corpus", "documents as they should be", optional=True, many=True),
        "bad": Input("corpus", "documents as they should not be", optional=True, many=True),
        "background": Input(
            "corpus", "in place of bad documents: a random sample of it stands for them", optional=True, many=True
        ),
    },
    outputs={"classifier": Output("classifier", "weights of hashed words; effect.json says how well it does")},
)
def train_classifier(ctx: Context, params: TrainClassifierParams) -> None:
    """Learn to tell good documents from bad ones by examples, and measure it on sources that it has not seen."""
    from liuyi.data.quality.examples import gather
    from liuyi.data.quality.features import features
    from liuyi.data.quality.report import assess, effect
    from liuyi.data.quality.train import held_out_scores, train

    given = {port: ctx.inputs(port) for port in ("good", "bad", "background")}
    examples = gather(given["good"], given["bad"], params.labelled, given["background"], most=params.max_examples)
    rows = features(examples.texts)
    good, groups = examples.labels, examples.groups
    scores = held_out_scores(rows, good, groups, on_progress=lambda done, total: ctx.progress(done, total, "folds"))
    classifier, found = train(rows, good, groups), assess(examples, scores)
    with ctx.output("classifier") as out:
        classifier.save(out.path)
        shown = effect(examples, classifier, rows, found)
        shown.save(out.path)
        out.metrics.update(good=len(examples.good), bad=len(examples.bad), left_out=examples.left_out)
        out.metrics.update(contradictions=examples.contradictions, l2=classifier.l2)
        out.metrics.update({name.lower(): figure.value for name, figure in found.figures.items()})
        out.metrics["calibration_error"] = found.calibration_error
        for artifacts in given.values():
            out.licences.update(*(artifact.manifest.licences for artifact in artifacts))
    ctx.log(shown.summary)


class ScoreParams(Params):
    pass


@step(
    "data.score",
    version=1,
    inputs={"corpus": Input("corpus", "measured or not"), "classifier": Input("classifier")},
    outputs={"corpus": Output("corpus", "with the attributes quality_score and quality_rank")},
)
def score(ctx: Context, params: ScoreParams) -> None:
    """Score every document by a classifier. Nothing is dropped here; data.select decides."""
    from liuyi.data.corpus import count_documents
    from liuyi.data.quality.classifier import Classifier
    from liuyi.data.quality.score import score

    source, classifier = ctx.input("corpus"), Classifier.load(ctx.input("classifier").path)
    total = count_documents(source.path)
    with ctx.output("corpus") as out:
        found = score(
            source.path,
            out.path,
            classifier,
            ctx.workdir,
            on_progress=lambda done: ctx.progress(done, total, "documents"),
        )
        likely = found.sizes[found.scores >= 0.5].sum() / max(int(found.sizes.sum()), 1)
        out.metrics.update(documents=total, good_bytes_share=float(likely))
        out.licences.update(source.manifest.licences)
    ctx.log(f"{total:,} documents scored; {likely:.1%} of the bytes score 0.5 or more")


class PerplexityParams(Params):
    window: int = Field(512, ge=2, description="tokens that the model sees at once, no more than its context")
    max_tokens: int = Field(1024, ge=1, description="tokens of a document that are read, from its beginning")
    weights: Literal["reference", "fp32", "bf16", "int8"] = Field(
        "fp32",
        description="number format of the model, in native code where there is any, else in torch; `reference` is "
        "torch in the format that the weights are stored in, and int8 needs native code",
    )


@step(
    "data.perplexity",
    version=1,
    inputs={"corpus": Input("corpus", "measured or not"), "model": Input("checkpoint")},
    outputs={"corpus": Output("corpus", "with the attributes perplexity, bits_per_byte and perplexity_tokens")},
)
def perplexity(ctx: Context, params: PerplexityParams) -> None:
    """Measure how surprised a model is by every document. Nothing is dropped here; data.select decides."""
    from liuyi.data.corpus import count_documents
    from liuyi.data.quality.perplexity import Plan, perplexity

    source, model = ctx.input("corpus"), ctx.input("model")
    total = count_documents(source.path)
    with ctx.output("corpus") as out:
        tokens = perplexity(
            source.path,
            out.path,
            model.path,
            Plan(params.window, params.max_tokens, params.weights),
            ctx.workdir,
            on_progress=lambda done: ctx.progress(done, total, "documents"),
        )
        out.metrics.update(documents=total, tokens=tokens)
        out.licences.update(source.manifest.licences)
    ctx.log(f"{total:,} documents measured by {tokens:,} of their tokens")
