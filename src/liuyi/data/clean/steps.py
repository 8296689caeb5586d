"""Steps that measure more of a corpus than `data.clean` does: lists of one's own, the language of short texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, SourcePath, step

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa


class ListsParams(Params):
    urls: SourcePath | None = Field(
        None, description="text file of hosts and addresses, one a line: gives the attribute url_blocked"
    )
    words: SourcePath | None = Field(
        None, description="text file of words and phrases, one a line: gives bad_words and bad_word_ratio"
    )


@step(
    "data.lists",
    version=1,
    inputs={"corpus": Input("corpus", "measured or not")},
    outputs={"corpus": Output("corpus", "with url_blocked, bad_words and bad_word_ratio among its attributes")},
)
def lists(ctx: Context, params: ListsParams) -> None:
    """Look documents up in lists of your own: addresses that are not wanted, words that are counted."""
    from functools import partial

    from liuyi.core.errors import StepError
    from liuyi.data.clean.lists import Lists, measure_group

    if params.urls is None and params.words is None:
        raise StepError("no list is given", where=ctx.name, hint="set urls or words to a text file, one entry a line")
    known = Lists.read(params.urls, params.words)
    _measure(ctx, known.schema, partial(measure_group, known))


class LanguageParams(Params):
    languages: tuple[str, ...] = Field(
        ("en", "zh", "ja", "ko", "de", "fr", "es", "pt", "it", "ru"),
        min_length=2,
        description="ISO 639-1 codes to choose among; fewer are told apart better",
    )
    max_chars: int = Field(200, ge=1, description="longer documents are told by the model of data.clean")


@step(
    "data.language",
    version=1,
    inputs={"corpus": Input("corpus", "measured or not")},
    outputs={"corpus": Output("corpus", "with lang and lang_score, by lingua where documents are short")},
)
def language(ctx: Context, params: LanguageParams) -> None:
    """Tell the language again, by lingua where documents are short: it is better at them."""
    from functools import partial

    from liuyi.data.clean.short_language import SCHEMA, check, measure_group

    check(params.languages)
    _measure(ctx, SCHEMA, partial(measure_group, params.languages, params.max_chars))


def _measure(ctx: Context, schema: pa.Schema, function: Callable[[pa.Table], pa.Table]) -> None:
    """Put the attributes that `function` measures of each row group beside the documents."""
    from liuyi.data.attributes import with_columns
    from liuyi.data.corpus import count_documents
    from liuyi.data.parts import map_groups

    source = ctx.input("corpus")
    total = count_documents(source.path)
    measured = map_groups(
        function,
        source.path,
        ["text", "url"],
        ctx.workdir,
        on_progress=lambda done: ctx.progress(done, total, "documents"),
    )
    with ctx.output("corpus") as out:
        with_columns(source.path, out.path, schema, measured)
        out.metrics.update(documents=total)
        out.licences.update(source.manifest.licences)
