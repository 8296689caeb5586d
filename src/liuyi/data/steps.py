"""Where this art meets the spine: its steps."""

from __future__ import annotations

from pydantic import Field

from liuyi.core.step import Context, Output, Params, SourcePath, step


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
    number_words: float = Field(0.08, ge=0, le=1, description="share of numbers written in words")


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
            out.metrics["templates"] = len({row.cluster for row in made.rows[name] if row.kind != "outside"})
            out.licences.add(LICENCE)
            if name == "train":
                desk_effect(made).save(out.path)
    ctx.log(f"{len(made.rows['train']):,} rows to learn from, {sum(made.dropped.values()):,} sentences left out")
