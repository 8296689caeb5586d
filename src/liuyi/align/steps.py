"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from liuyi.core.errors import DataError
from liuyi.core.step import Context, Input, Output, Params, step
from liuyi.finetune.tuning import TUNED_OUTPUTS, TuningParams
from liuyi.train.params import (
    MILESTONES,
    MOST_ROW_TOKENS,
    ComputeDtype,
    MaxSteps,
    ParallelParams,
    SamplesParams,
    Schedule,
)

PRELOAD = ("torch",)


class SampleParams(Params):
    prompts: int = Field(400, ge=1, description="prompts to answer, drawn over all clusters")
    samples: int = Field(4, ge=1, le=64, description="sampled answers for each prompt, beside the greedy one")
    temperature: float = Field(1.0, gt=0, le=5, description="of the sampled answers")
    top_p: float = Field(1.0, gt=0, le=1, description="only the most probable tokens up to this mass")
    max_tokens: int = Field(96, ge=1, description="longest answer")
    pairs_per_prompt: int = Field(2, ge=1, le=64, description="most pairs that one prompt may give")
    use_reference: bool = Field(True, description="take the reference as chosen where no answer of the model is right")


@step(
    "align.sample",
    version=2,
    inputs={"model": Input("checkpoint"), "chats": Input("chats", "prompts with their right answers")},
    outputs={"preferences": Output("preferences", "right against wrong answers; rollouts.parquet has every answer")},
)
def sample(ctx: Context, params: SampleParams) -> None:
    """Let the model answer, judge its answers by the verifier, and pair right with wrong."""
    from liuyi.align.preferences import sample_effect, sample_figures, write_preferences, write_rollouts
    from liuyi.align.rollout import choose_prompts, make_pairs, read_prompts, read_schema, roll_out, with_room
    from liuyi.infer.engine import Engine
    from liuyi.model.checkpoint import load_model
    from liuyi.model.tokenizer import Tokenizer

    model, chats = ctx.input("model"), ctx.input("chats")
    chosen = choose_prompts(read_prompts(chats.file("chats.parquet")), params.prompts, ctx.seed)
    if not chosen:
        raise DataError("there is no conversation to take a prompt from", where=str(chats.file("chats.parquet")))
    engine = Engine(load_model(model.path), Tokenizer.load(model.path), seed=ctx.seed)
    prompts = with_room(engine, chosen)
    if not prompts:
        raise DataError(f"no prompt fits the model's context of {engine.max_tokens} tokens")
    if len(prompts) < len(chosen):
        ctx.log(f"{len(chosen) - len(prompts)} of {len(chosen)} prompts leave the model's context no room: left out")
    rollouts = roll_out(
        engine,
        prompts,
        samples=params.samples,
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_tokens,
        schema=read_schema(chats.path),
        seed=ctx.seed,
        on_progress=lambda done, total: ctx.progress(done, total, "answers"),
    )
    pairs = list(make_pairs(prompts, rollouts, per_prompt=params.pairs_per_prompt, use_reference=params.use_reference))
    figures = sample_figures(rollouts, pairs)
    for name, value in figures.items():
        ctx.metric(name, value)
    with ctx.output("preferences") as out:
        write_preferences(out.path, pairs)
        write_rollouts(out.path, prompts, rollouts)
        sample_effect(prompts, rollouts, pairs, figures).save(out.path)
        out.metrics.update(figures)
        out.licences.update(prompt.license for prompt in prompts)


_USED_BY = {
    "label_smoothing": ("cdpo",),
    "gamma": ("simpo",),
    "nll_weight": ("dpo", "cdpo", "ipo", "simpo"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""The objectives that use a parameter; others take part in all."""
_OF_WATCH = ("watch_every", "probe_prompts", "max_chosen_drop", "max_kl", "max_repetition_rise")


def _demand_shares(params: ParallelParams, batch_pairs: int) -> None:
    """Raises ValueError for processes that cannot share the batches."""
    if params.context > 1:
        raise ValueError("'context' divides rows of text, and answers are read whole; it is for pretraining and sft")
    params.demand_shares(batch_pairs, "pairs")


class PreferenceParams(TuningParams, SamplesParams):
    objective: Literal["dpo", "cdpo", "ipo", "simpo", "orpo", "kto"] = Field("dpo", description="what is minimised")
    beta: float | None = Field(
        None, gt=0, description="how dearly a departure from the start model is paid; 0.1, and 2 for simpo, if left out"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="cdpo: share of labels that are held to be wrong")
    gamma: float = Field(1.0, ge=0, description="simpo: the margin by which the chosen answer should lead")
    nll_weight: float | None = Field(
        None, ge=0, description="weight of the chosen answers' own likelihood; 0.2 for dpo and cdpo if left out, else 0"
    )
    desirable_weight: float = Field(1.0, ge=0, description="kto: weight of wanted answers")
    undesirable_weight: float = Field(1.0, ge=0, description="kto: weight of unwanted answers")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs, unless `max_steps` is given")
    max_steps: MaxSteps = None
    batch_pairs: int = Field(32, ge=1, description="pairs, or answers with kto, in a step's global batch")
    micro_pairs: int | None = Field(None, ge=1, description="pairs computed at once; less takes less memory")
    seq_len: int = Field(
        1024,
        ge=8,
        le=MOST_ROW_TOKENS,
        description="tokens in a packed row; what is longer, or beyond the model's context, is left out",
    )
    optimiser: Literal["adamw", "adamw8bit", "muon"] = Field(
        "adamw", description="muon: of the matrices inside the layers, with adamw for the rest"
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Schedule = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="part of all steps")
    compute_dtype: ComputeDtype = "auto"
    watch: bool = Field(True, description="stop and go back when the model collapses")
    watch_every: int = Field(20, ge=1, description="steps between two looks")
    probe_prompts: int = Field(48, ge=1, description="prompts of the fixed probe set")
    max_chosen_drop: float = Field(0.5, gt=0, description="fall of the chosen log-probability, nats a token")
    max_kl: float = Field(0.5, gt=0, description="KL to the start model, nats a token")
    max_repetition_rise: float = Field(0.2, gt=0, description="rise of the part of repeated 4-grams")

    @field_validator(*_USED_BY)
    @classmethod
    def _is_used_by(cls, value: Any, info: ValidationInfo) -> Any:
        """A value other than the default's is refused where the objective does not use it."""
        users, objective = _USED_BY[str(info.field_name)], info.data.get("objective")
        default = cls.model_fields[str(info.field_name)].default
        if value != default and objective is not None and objective not in users:
            raise ValueError(f"'{info.field_name}' means nothing to {objective}; it is for {', '.join(users)}")
        return value

    @field_validator(*_OF_WATCH)
    @classmethod
    def _is_watched(cls, value: Any, info: ValidationInfo) -> Any:
        """A value other than the default's is refused where nobody looks."""
        if value != cls.model_fields[str(info.field_name)].default and not info.data.get("watch", True):
            raise ValueError(f"'{info.field_name}' means nothing with watch: false")
        return value

    @model_validator(mode="after")
    def _pairs_can_be_shared(self) -> Self:
        _demand_shares(self, self.batch_pairs)
        return self

    @property
    def strength(self) -> float:
        """β, as given or as the objective's authors take it."""
        return self.beta or (2.0 if self.objective == "simpo" else 0.1)

    @property
    def likelihood(self) -> float:
        """Weight of the likelihood term."""
        if self.nll_weight is not None:
            return self.nll_weight
        return 0.2 if self.objective in ("dpo", "cdpo") else 0.0


@step(
    "align.preference",
    version=3,
    inputs={
        "model": Input("checkpoint", "start and reference"),
        "preferences": Input("preferences", "pairs, or labelled answers for kto"),
    },
    outputs=TUNED_OUTPUTS,
    starts_again=True,
)
def preference(ctx: Context, params: PreferenceParams) -> None:
    """Learn from preferences (DPO, cDPO, IPO, SimPO, ORPO or KTO), under the collapse watch."""
    from liuyi.align.preference import align_preference
    from liuyi.train import launch

    launch.run(ctx, params, align_preference)


class RewardParams(TuningParams):
    heldout: float = Field(0.1, gt=0, lt=1, description="share of the prompts whose pairs are kept to measure accuracy")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs, unless `max_steps` is given")
    max_steps: MaxSteps = None
    batch_pairs: int = Field(32, ge=1, description="pairs in a step's global batch")
    micro_pairs: int | None = Field(None, ge=1, description="pairs computed at once; less takes less memory")
    seq_len: int = Field(
        1024,
        ge=8,
        le=MOST_ROW_TOKENS,
        description="tokens in a packed row; what is longer, or beyond the model's context, is left out",
    )
    optimiser: Literal["adamw", "adamw8bit", "muon"] = Field(
        "adamw", description="muon: of the matrices inside the layers, with adamw for the rest"
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate of the decoder")
    head_lr: float | None = Field(None, gt=0, description="peak learning rate of the value head; as `lr`")
    schedule: Schedule = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="part of all steps")
    compute_dtype: ComputeDtype = "auto"

    @model_validator(mode="after")
    def _pairs_can_be_shared(self) -> Self:
        _demand_shares(self, self.batch_pairs)
        return self


@step(
    "align.reward",
    version=3,
    inputs={"model": Input("checkpoint", "what to start from"), "preferences": Input("preferences", "pairs")},
    outputs={"checkpoint": Output("checkpoint", "a reward model, which scores answers and writes none"), **MILESTONES},
    starts_again=True,
)
def reward(ctx: Context, params: RewardParams) -> None:
    """Train a reward model on pairs (Bradley-Terry), and measure it on pairs of prompts that it did not see."""
    from liuyi.align.reward_model import align_reward
    from liuyi.train import launch

    launch.run(ctx, params, align_reward)
