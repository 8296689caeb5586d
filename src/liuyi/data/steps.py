"""Where this art meets the spine: its steps."""

from __future__ import annotations

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, SourcePath, step
from liuyi.data.clean.steps import language, lists
from liuyi.data.contamination.steps import decontaminate
from liuyi.data.dedup.steps import dedup_lines, dedup_semantic, dedup_substrings
from liuyi.data.instructions.steps import chats_file, preferences_file
from liuyi.data.mix.steps import mix
from liuyi.data.quality.steps import perplexity, score, train_classifier
from liuyi.data.select.edits import Edits
from liuyi.data.select.thresholds import Thresholds
from liuyi.data.sources.steps import crawl, debian_docs, files, huggingface
from liuyi.data.synthesis.steps import (
    back_translate,
    evol_instruct,
    magpie,
    personas,
    rephrase,
    self_instruct,
    verified,
)

__all__ = (
    "back_translate",
    "chats_file",
    "crawl",
    "debian_docs",
    "decontaminate",
    "dedup_lines",
    "dedup_semantic",
    "dedup_substrings",
    "evol_instruct",
    "files",
    "huggingface",
    "language",
    "lists",
    "magpie",
    "mix",
    "perplexity",
    "personas",
    "preferences_file",
    "rephrase",
    "score",
    "self_instruct",
    "train_classifier",
    "verified",
)


class PythonDocsParams(Params):
    max_mb: float = Field(30.0, gt=0, description="megabytes of text in all")
    max_mb_per_source: float = Field(6.0, gt=0, description="megabytes of text from one distribution")
    include: tuple[str, ...] = Field((), description="only these distributions; `python` is the standard library")
    exclude: tuple[str, ...] = Field((), description="all but these distributions")


def _installed(params: PythonDocsParams) -> str:
    from liuyi.data.sources.distributions import versions

    return " ".join(versions())


@step(
    "data.python_docs",
    version=2,
    inputs={},
    outputs={"corpus": Output("corpus", "one document a module, readme or text file; rejected.parquet beside them")},
    fingerprint=_installed,
)
def python_docs(ctx: Context, params: PythonDocsParams) -> None:
    """Documentation of the Python packages on this machine: docstrings, readmes, text files. Nothing is imported."""
    from liuyi.data.corpus import write_documents, write_rejected
    from liuyi.data.sources.distributions import chosen
    from liuyi.data.sources.python_docs import read_distributions

    documents, rejected = read_distributions(
        chosen(params.include, params.exclude),
        max_bytes=int(params.max_mb * 1e6),
        max_bytes_per_source=int(params.max_mb_per_source * 1e6),
        on_progress=lambda done, total: ctx.progress(done / 1e6, total / 1e6, "MB of source"),
    )
    with ctx.output("corpus") as out:
        count, size = write_documents(out.path, documents)
        out.metrics.update(documents=count, bytes=size, rejected=write_rejected(out.path, rejected))
        out.licences.update(document.license for document in documents)
    sources = len({document.source for document in documents})
    ctx.log(f"{count:,} documents, {size / 1e6:.1f} MB from {sources} distributions; {len(rejected)} files unreadable")


class CleanParams(Params):
    jaccard: float = Field(
        0.8, gt=0.3, le=1, description="near duplicates share at least this part of their word 5-grams"
    )


@step(
    "data.clean",
    version=3,
    inputs={"corpus": Input("corpus")},
    outputs={"corpus": Output("corpus", "the same documents with attributes.parquet beside them")},
)
def clean(ctx: Context, params: CleanParams) -> None:
    """Measure every document: language, quality, repetition, personal data, duplicates. Nothing is dropped here."""
    from liuyi.data.clean.run import clean
    from liuyi.data.corpus import count_documents

    source = ctx.input("corpus")
    total = count_documents(source.path)
    with ctx.output("corpus") as out:
        done = clean(
            source.path,
            out.path,
            ctx.workdir,
            jaccard=params.jaccard,
            on_progress=lambda done: ctx.progress(done, total, "documents"),
        )
        exact, near = done.duplicates["exact"], done.duplicates["near"]
        out.metrics.update(documents=done.documents, exact=exact, near=near)
        out.licences.update(source.manifest.licences)
    ctx.log(f"{done.documents:,} documents measured; {exact:,} exact and {near:,} near duplicates")


class SelectParams(Thresholds, Edits):
    heldout_fraction: float = Field(0.05, ge=0, lt=1, description="part of the bytes held out, in whole clusters")


@step(
    "data.select",
    version=3,
    inputs={"corpus": Input("corpus", "with attributes, as data.clean gives it")},
    outputs={
        "train": Output("corpus", "dropped.parquet beside it says what was dropped and why"),
        "heldout": Output("corpus", "clusters of which nothing is in train"),
    },
)
def select(ctx: Context, params: SelectParams) -> None:
    """Decide by thresholds what is kept, and hold out whole clusters."""
    import numpy as np

    from liuyi.data.select.effect import effect
    from liuyi.data.select.run import decide, write

    source = ctx.input("corpus").path
    decision = decide(source, params, params, heldout_fraction=params.heldout_fraction)
    total = len(decision.held_out)
    with ctx.output("train") as train, ctx.output("heldout") as heldout:
        written = write(
            source, decision, params, train.path, heldout.path, lambda done: ctx.progress(done, total, "documents")
        )
        for out, name, rows in ((train, "train", ~decision.held_out), (heldout, "heldout", decision.held_out)):
            clusters, licences = (
                decision.places[column].totals(decision.kept & rows) for column in ("cluster", "license")
            )
            out.metrics.update(documents=written.documents[name], clusters=int(np.count_nonzero(clusters)))
            out.licences.update(decision.places["license"].names[number] for number in np.flatnonzero(licences))
        shown = effect(decision, written, params)
        shown.save(train.path)
    ctx.log(shown.summary)


class TokenizerParams(Params):
    vocab_size: int = Field(4096, ge=260, description="tokens; a small text gives fewer")
    sample_mb: float = Field(8.0, gt=0, description="megabytes to train on, shared evenly among the inputs")


@step(
    "data.tokenizer",
    version=2,
    inputs={
        "texts": Input(("corpus", "chats"), "corpora and conversations to learn the tokens from", many=True),
        "beside": Input(
            ("tokenizer", "checkpoint"), "tokenizers to compare with on unseen text", optional=True, many=True
        ),
    },
    outputs={"tokenizer": Output("tokenizer")},
)
def tokenizer(ctx: Context, params: TokenizerParams) -> None:
    """Train a byte-level BPE tokenizer and measure it on text that it has not seen."""
    from liuyi.data.vocabulary import effect, train_tokenizer
    from liuyi.model.tokenizer import Tokenizer

    beside = {
        f"{artifact.kind} {artifact.digest[:12]}": Tokenizer.load(artifact.path) for artifact in ctx.inputs("beside")
    }
    made, measured = train_tokenizer(
        ctx.inputs("texts"),
        vocab_size=params.vocab_size,
        sample_bytes=int(params.sample_mb * 1e6),
        beside=list(beside.values()),
        on_progress=lambda done, total: ctx.progress(done, total),
    )
    with ctx.output("tokenizer") as out:
        made.save(out.path)
        shown = effect(made, measured, beside)
        shown.save(out.path)
        out.metrics["vocab_size"] = made.vocab_size
        out.metrics.update({f"bytes_per_token_{one.language}": one.bytes_per_token for one in measured})
        out.licences.update(*(artifact.manifest.licences for artifact in ctx.inputs("texts")))
    ctx.log(shown.summary)


class TokensParams(Params):
    max_tokens: int | None = Field(None, ge=1, description="take a sample of documents that fits; all when left out")


@step(
    "data.tokens",
    version=2,
    inputs={
        "corpus": Input("corpus"),
        "tokenizer": Input(("tokenizer", "checkpoint"), "a model counts by its tokenizer"),
    },
    outputs={"tokens": Output("tokens", "documents in an order shuffled by a hash of their ids")},
)
def tokens(ctx: Context, params: TokensParams) -> None:
    """Encode documents as one memory-mapped stream of tokens."""
    from liuyi.data.tokens import write_tokens
    from liuyi.model.tokenizer import Tokenizer

    source = ctx.input("corpus")
    with ctx.output("tokens") as out:
        about = write_tokens(
            out.path,
            source.path,
            Tokenizer.load(ctx.input("tokenizer").path),
            max_tokens=params.max_tokens,
            on_progress=lambda done, total: ctx.progress(done / 1e6, total / 1e6, "MB"),
        )
        out.metrics.update(tokens=about.tokens, documents=about.documents, bytes=about.bytes)
        out.licences.update(source.manifest.licences)
    ctx.log(f"{about.tokens:,} tokens of {about.documents:,} documents, {about.bytes / about.tokens:.2f} bytes a token")


class DeskParams(Params):
    facility: SourcePath | None = Field(
        None, description="YAML that describes your facility; the guest house that comes with Liuyi when left out"
    )
    train_rows: int = Field(9000, ge=100, description="rows to learn from, both languages together")
    practice_rows: int = Field(1200, ge=10, description="rows of further templates, for alignment")
    test_items: int = Field(500, ge=10, description="sentences of templates held out for the final measure")
    dev_items: int = Field(400, ge=10, description="sentences of templates held out for calibration")
    familiar_items: int = Field(150, ge=10, description="new sentences of training templates")
    typo_items: int = Field(200, ge=10, description="test sentences with typing errors")
    outside_items: int = Field(120, ge=10, description="requests that are not the desk's")
    compound_items: int = Field(100, ge=10, description="sentences that hold several requests")
    test_share: float = Field(0.15, gt=0, lt=0.4, description="share of each intent's templates held out for test")
    dev_share: float = Field(0.10, gt=0, lt=0.4, description="share held out for calibration")
    practice_share: float = Field(0.08, gt=0, lt=0.4, description="share kept from fine-tuning, for alignment")
    typo_rows: float = Field(0.08, ge=0, le=0.5, description="share of training rows with a typing error")
    outside_rows: float = Field(0.06, ge=0, le=0.5, description="share of training rows that are not the desk's")
    compound_rows: float = Field(0.03, ge=0, le=0.5, description="share of training rows with several requests")
    number_words: float = Field(0.05, ge=0, le=1, description="share of numbers written in words")


def _desk_sources(params: DeskParams) -> str:
    from importlib.metadata import version

    return " ".join(f"{name}=={version(name)}" for name in ("home-assistant-intents", "hassil", "unicode-rbnf"))


@step(
    "data.desk",
    version=1,
    inputs={},
    outputs={
        "train": Output("chats", "rows to learn from; rules.json, facility.json and schema.json beside them"),
        "practice": Output("chats", "rows of templates kept from fine-tuning, for alignment"),
        "dev": Output("evalset", "held-out templates for calibration and gates"),
        "test": Output("evalset", "held-out templates for the final measure"),
        "familiar": Output("evalset", "new sentences of training templates"),
        "typos": Output("evalset", "test sentences with typing errors"),
        "outside": Output("evalset", "requests that are not the desk's; the right answer is to hand off"),
        "compound": Output("evalset", "several requests in one sentence; the right answer is a list"),
    },
    fingerprint=_desk_sources,
)
def desk(ctx: Context, params: DeskParams) -> None:
    """The facility desk task in English and Chinese, from the sentence templates of `home-assistant-intents`."""
    from liuyi.data.desk.build import Plan, build_desk
    from liuyi.data.desk.facility import Facility
    from liuyi.data.desk.templates import LICENCE
    from liuyi.data.desk.write import EVAL_SETS, desk_effect, write_chats, write_evalset

    plan = Plan(**params.model_dump(exclude={"facility"}))
    made = build_desk(Facility.load(params.facility), plan, ctx.seed)
    for name in ("train", "practice", *EVAL_SETS):
        with ctx.output(name) as out:
            (write_evalset if name in EVAL_SETS else write_chats)(out.path, name, made)
            out.metrics["rows"] = len(made.rows[name])
            out.metrics["templates"] = len({row.cluster for row in made.rows[name]} & set(made.parts))
            out.licences.add(LICENCE)
            if name == "train":
                desk_effect(made).save(out.path)
    ctx.log(f"{len(made.rows['train']):,} rows to learn from, {sum(made.dropped.values()):,} sentences left out")
