"""The steps that look for repeated text and for documents that say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

_MARKED = Output("corpus", "with spans in the attribute repeated, which data.select cuts out")


class DedupLinesParams(Params):
    lines_in: int = Field(10, ge=0, description="a line in so many documents is repeated; 0 leaves lines alone")
    paragraphs_in: int = Field(3, ge=0, description="a paragraph in so many documents is repeated; 0 leaves them alone")
    min_words: int = Field(6, ge=1, description="shorter lines and paragraphs stay; a Han character is a word")
    keep_first: bool = Field(True, description="the first occurrence in the corpus stays")


@step("data.dedup_lines", version=1, inputs={"corpus": Input("corpus")}, outputs={"corpus": _MARKED})
def dedup_lines(ctx: Context, params: DedupLinesParams) -> None:
    """Mark lines and paragraphs that stand in many documents, such as headers, footers and notices."""
    from liuyi.core.errors import StepError
    from liuyi.data.corpus import count_documents
    from liuyi.data.dedup.lines import Repeats, Unit, repeated_pieces
    from liuyi.data.dedup.spans import in_turn

    units: list[tuple[Unit, int]] = [("line", params.lines_in), ("paragraph", params.paragraphs_in)]
    wanted = [(unit, documents) for unit, documents in units if documents]
    if not wanted:
        raise StepError("neither lines nor paragraphs are to be looked at", where=ctx.name, hint="set lines_in: 10")
    source = ctx.input("corpus")
    total = count_documents(source.path)
    spans = [
        repeated_pieces(
            source.path,
            ctx.workdir / unit,
            Repeats(unit, documents, params.min_words, params.keep_first),
            on_progress=lambda done: ctx.progress(done, total, "documents"),
        )
        for unit, documents in wanted
    ]
    _write(ctx, in_turn(spans))


class DedupSubstringsParams(Params):
    min_bytes: int = Field(200, ge=20, description="shorter repetitions stay; 200 bytes are some 50 tokens")


@step("data.dedup_substrings", version=1, inputs={"corpus": Input("corpus")}, outputs={"corpus": _MARKED})
def dedup_substrings(ctx: Context, params: DedupSubstringsParams) -> None:
    """Mark every passage that stands further ahead in the corpus already, found exactly."""
    from liuyi.data.corpus import count_documents
    from liuyi.data.dedup.substrings import repeated_substrings

    source = ctx.input("corpus").path
    total = count_documents(source)
    spans = repeated_substrings(
        source, ctx.workdir, params.min_bytes, on_progress=lambda done: ctx.progress(done, total, "documents")
    )
    _write(ctx, spans)


class DedupSemanticParams(Params):
    cosine: float = Field(0.9, gt=0, le=1, description="documents whose vectors are so alike say the same")
    keep: Literal["farthest", "nearest"] = Field(
        "farthest",
        description="which of those alike stays: the one farthest from the centroid of its cluster, or nearest",
    )
    per_cluster: int = Field(1000, ge=2, description="documents in a cluster, about; only within one are they compared")
    max_tokens: int = Field(512, ge=1, description="tokens of a document that are read, from its beginning")


@step(
    "data.dedup_semantic",
    version=1,
    inputs={
        "corpus": Input("corpus", "best with near duplicates found, as data.clean does"),
        "model": Input("checkpoint", "gives the vectors; a table of English word pieces when left out", optional=True),
    },
    outputs={"corpus": Output("corpus", "with duplicates of the kind semantic added, which data.select drops")},
)
def dedup_semantic(ctx: Context, params: DedupSemanticParams) -> None:
    """Find documents that say the same in other words: SemDeDup. Nothing is dropped here; data.select decides."""
    from liuyi.data.corpus import count_documents
    from liuyi.data.dedup.semantic import Alike, semantic_duplicates, with_duplicates

    source = ctx.input("corpus")
    total = count_documents(source.path)
    found = semantic_duplicates(
        source.path,
        ctx.workdir,
        Alike(params.cosine, params.keep, params.per_cluster, params.max_tokens),
        model=ctx.input("model").path if ctx.has("model") else None,
        on_progress=lambda done: ctx.progress(done, total, "documents"),
    )
    count = int((found.kind == "semantic").sum())
    with ctx.output("corpus") as out:
        with_duplicates(source.path, out.path, found)
        out.metrics.update(documents=total, semantic=count)
        out.licences.update(source.manifest.licences)
    ctx.log(f"{count:,} of {total:,} documents say the same as another (cosine {params.cosine:g} and more)")


def _write(ctx: Context, spans: Iterator[pa.Array]) -> None:
    from liuyi.data.dedup.spans import Counted, with_repeated

    source, counted = ctx.input("corpus"), Counted()
    with ctx.output("corpus") as out:
        with_repeated(source.path, out.path, counted.through(spans))
        out.metrics.update(documents=counted.documents, marked=counted.marked, repeated_chars=counted.chars)
        out.licences.update(source.manifest.licences)
    ctx.log(f"{counted.chars:,} characters are repeated, in {counted.marked:,} of {counted.documents:,} documents")
