"""The step that looks for eval items in a corpus."""

from __future__ import annotations

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step


class DecontaminateParams(Params):
    ngram: int = Field(13, ge=4, description="words in a row that count as contamination; shorter items as a whole")


@step(
    "data.decontaminate",
    version=1,
    inputs={
        "corpus": Input("corpus", "measured or not"),
        "evalsets": Input("evalset", "what must not be learned by heart", many=True),
    },
    outputs={
        "corpus": Output("corpus", "with the attribute contaminated_by; contamination.parquet says what and where")
    },
)
def decontaminate(ctx: Context, params: DecontaminateParams) -> None:
    """Mark documents that hold items of eval sets; data.select drops them. Nothing is dropped here."""
    from liuyi.core.errors import DataError
    from liuyi.data.contamination.items import read_items
    from liuyi.data.contamination.mark import mark
    from liuyi.data.corpus import count_documents

    source, items = ctx.input("corpus"), read_items(ctx.inputs("evalsets"))
    if not items.ids:
        raise DataError("there are no items to look for", where=ctx.name, hint="give eval sets as 'evalsets'")
    total = count_documents(source.path)
    with ctx.output("corpus") as out:
        found = mark(
            source.path,
            out.path,
            items,
            ctx.workdir,
            ngram=params.ngram,
            on_progress=lambda done: ctx.progress(done, total, "documents"),
        )
        out.metrics.update(documents=total, contaminated=found.documents, items=len(items.ids), items_found=found.items)
        out.licences.update(source.manifest.licences)
    ctx.log(
        f"{found.documents:,} of {total:,} documents hold words of {found.items:,} of {len(items.ids):,} items"
        f" ({params.ngram} in a row, or a whole shorter item)"
    )
