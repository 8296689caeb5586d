"""Mixing as a step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.step import Context, Input, Output, step
from liuyi.data.mix.params import MixParams

if TYPE_CHECKING:
    from liuyi.data.tokens import Tokens


@step(
    "data.mix",
    version=1,
    inputs={
        "sources": Input(("tokens", "corpus"), "what to mix, all with one tokenizer", many=True),
        "tokenizer": Input(("tokenizer", "checkpoint"), "to encode those sources that are corpora", optional=True),
    },
    outputs={"tokens": Output("tokens", "one stream; mixture.json says where phases begin and what each source gave")},
)
def mix(ctx: Context, params: MixParams) -> None:
    """Mix sources of tokens by weights, phases, a budget, and bounds on how often each is repeated."""
    from liuyi.data.mix.plan import labels_of, make_plan
    from liuyi.data.mix.write import write_mixture

    given = ctx.inputs("sources")
    labels = labels_of(params.labels, len(given))
    sources = [_tokens(ctx, artifact, label) for artifact, label in zip(given, labels, strict=True)]
    plan = make_plan(params, {label: len(tokens) for label, tokens in zip(labels, sources, strict=True)})
    for warning in plan.warnings():
        ctx.log(warning)
    with ctx.output("tokens") as out:
        about = write_mixture(
            out.path,
            sources,
            plan,
            ctx.seed,
            on_progress=lambda done, total: ctx.progress(done, total, "documents"),
        )
        effect = plan.effect()
        effect.save(out.path)
        out.metrics.update(tokens=about.tokens, documents=about.documents, bytes=about.bytes)
        used = [artifact for artifact, taken in zip(given, plan.taken, strict=True) if taken > 0]
        out.licences.update(*(artifact.manifest.licences for artifact in used))
    ctx.log(effect.summary)


def _tokens(ctx: Context, artifact: Artifact, label: str) -> Tokens:
    """The tokens of a source; a corpus is encoded into the work folder first."""
    from liuyi.data.tokens import ABOUT, Tokens, write_tokens
    from liuyi.model.tokenizer import Tokenizer

    if artifact.kind == "tokens":
        return Tokens(artifact.path)
    if not ctx.has("tokenizer"):
        raise DataError(f"'{label}' is a corpus without a tokenizer to encode it", hint="give the input 'tokenizer'")
    folder: Path = ctx.workdir / f"tokens-{artifact.digest[:16]}"
    # tokens.json is written last: a folder that has it is whole.
    if not (folder / ABOUT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokens(
            folder,
            artifact.path,
            Tokenizer.load(ctx.input("tokenizer").path),
            on_progress=lambda done, total: ctx.progress(done / 1e6, total / 1e6, f"MB of {label}"),
        )
    return Tokens(folder)
