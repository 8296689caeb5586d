"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step

PRELOAD = ("torch", "scipy.stats", "hassil")


class BuildParams(Params):
    risk: float = Field(0.1, gt=0, lt=1, description="share of wrong answers that is allowed among the model's")
    guarded_risk: float = Field(0.05, gt=0, lt=1, description="the same for locks, alarm, gates and main valves")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence that the allowed risk is kept")
    score: Literal["sum", "mean", "min"] = Field("sum", description="figure that an answer's log-probabilities give")
    calibration: Literal["platt", "isotonic"] = Field("platt", description="how scores become confidences")
    constrained: bool = Field(True, description="force answers to follow the JSON Schema")
    max_tokens: int = Field(96, ge=1, description="longest answer of the model")


@step(
    "apply.build",
    version=1,
    inputs={
        "model": Input("checkpoint", "the tuned model"),
        "chats": Input("chats", "the desk's training chats, for rules, facility and schema"),
        "evalset": Input("evalset", "held-out requests to calibrate on; they are not a measure any more"),
    },
    outputs={"app": Output("app", "rules → model → person, calibrated and guarded")},
)
def build(ctx: Context, params: BuildParams) -> None:
    """Calibrate the rungs on held-out requests, and put the application together."""
    from liuyi.apply.app import AppConfig, Case, Knowledge, calibrate
    from liuyi.apply.app_report import build_effect, copy_knowledge
    from liuyi.apply.language import tidy
    from liuyi.apply.model_rung import ModelRung
    from liuyi.evaluate.generate import Evalset

    model, chats, evalset = ctx.input("model"), ctx.input("chats"), ctx.input("evalset")
    knowledge = Knowledge.load(chats.path)
    items = Evalset.load(evalset.path, evalset.digest).items
    cases = [Case(str(item["messages"][-1]["content"]), item["reference"], item["cluster"]) for item in items]
    rung = ModelRung.load(
        model.path, schema=knowledge.schema if params.constrained else None, max_tokens=params.max_tokens
    )
    said = rung.answer([tidy(case.text) for case in cases], lambda done, total: ctx.progress(done, total, "requests"))
    calibration = calibrate(
        knowledge,
        cases,
        said,
        score=params.score,
        method=params.calibration,
        risk=params.risk,
        guarded_risk=params.guarded_risk,
        level=params.level,
    )
    config = AppConfig(
        model.digest,
        params.score,
        params.constrained,
        params.max_tokens,
        calibration.calibrator,
        calibration.allowed,
    )
    for name, threshold in (("risk", calibration.plain), ("guarded risk", calibration.guarded)):
        if not threshold.holds:
            ctx.log(f"the model is not sure enough for any answer at the {name} of {threshold.risk:.0%}: it hands off")
    with ctx.output("app") as out:
        copy_knowledge(chats.path, out.path)
        config.save(out.path, calibration)
        build_effect(calibration).save(out.path)
        out.metrics["calibration_error"] = calibration.error
        out.metrics["raw_calibration_error"] = calibration.raw_error
        out.metrics["answered_share"] = calibration.plain.answered / len(cases)
        out.licences.update(chats.manifest.licences)


class EvaluateParams(Params):
    label: str = Field("", description="what reports call this application")


@step(
    "apply.evaluate",
    version=1,
    inputs={
        "app": Input("app"),
        "model": Input("checkpoint", "the model that the application was built with"),
        "evalsets": Input("evalset", "requests that nothing was fitted on", many=True),
    },
    outputs={"evaluation": Output("evaluation", "what rules, model and cascade did with each request")},
)
def evaluate(ctx: Context, params: EvaluateParams) -> None:
    """Try rules alone, the model alone and the cascade on the same requests."""
    from liuyi.apply.app import AppConfig, Knowledge
    from liuyi.apply.backend import check_model
    from liuyi.apply.model_rung import Memory, ModelRung
    from liuyi.apply.trial import try_out
    from liuyi.apply.trial_report import FEEDBACK, as_evaluation, trial_effect, write_feedback
    from liuyi.evaluate.generate import Evalset

    app, model = ctx.input("app"), ctx.input("model")
    config, knowledge = AppConfig.load(app.path), Knowledge.load(app.path)
    check_model(config, model)
    rung = ModelRung.load(
        model.path, schema=knowledge.schema if config.constrained else None, max_tokens=config.max_tokens
    )
    evalsets = [Evalset.load(each.path, each.digest) for each in ctx.inputs("evalsets")]
    tried = try_out(
        config.cascade(knowledge, Memory(rung)),
        knowledge,
        evalsets,
        lambda done, total: ctx.progress(done, total, "requests"),
    )
    evaluation = as_evaluation(tried, subject=app.digest, label=params.label or "application")
    with ctx.output("evaluation") as out:
        figures = evaluation.save(out.path, seed=ctx.seed)
        write_feedback(out.path / FEEDBACK, tried)
        trial_effect(tried).save(out.path)
        out.metrics.update({name: figure.mean for name, figure in figures.items()})
        out.licences.update(str(item.get("license") or "") for evalset in evalsets for item in evalset.items)
        out.licences.discard("")
