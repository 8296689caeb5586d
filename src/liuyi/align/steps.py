"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from liuyi.core.step import Context, Input, Output, Params, step

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
    version=1,
    inputs={"model": Input("checkpoint"), "chats": Input("chats", "prompts with their right answers")},
    outputs={"preferences": Output("preferences", "right against wrong answers; rollouts.parquet has every answer")},
)
def sample(ctx: Context, params: SampleParams) -> None:
    """Let the model answer, judge its answers by the verifier, and pair right with wrong."""
    from liuyi.align.preferences import sample_effect, sample_figures, write_preferences, write_rollouts
    from liuyi.align.rollout import choose_prompts, make_pairs, read_prompts, read_schema, roll_out
    from liuyi.infer.engine import Engine
    from liuyi.model.checkpoint import load_model
    from liuyi.model.tokenizer import Tokenizer

    model, chats = ctx.input("model"), ctx.input("chats")
    prompts = choose_prompts(read_prompts(chats.file("chats.parquet")), params.prompts, ctx.seed)
    engine = Engine(load_model(model.path), Tokenizer.load(model.path), seed=ctx.seed)
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


class DpoParams(Params):
    beta: float = Field(0.1, gt=0, description="how dearly a departure from the start model is paid")
    nll_weight: float = Field(0.2, ge=0, description="weight of the chosen answers' own likelihood")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs, unless `max_steps` is given")
    max_steps: int | None = Field(None, ge=1)
    batch_pairs: int = Field(32, ge=1, description="pairs in a step's global batch")
    micro_pairs: int | None = Field(None, ge=1, description="pairs computed at once; less takes less memory")
    seq_len: int = Field(256, ge=8, description="tokens in a packed row; a pair with a longer answer is left out")
    optimiser: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="part of all steps")
    clip_norm: float = Field(1.0, gt=0)
    compute_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    watch: bool = Field(True, description="stop and go back when the model collapses")
    watch_every: int = Field(20, ge=1, description="steps between two looks")
    probe_prompts: int = Field(48, ge=1, description="prompts of the fixed probe set")
    max_chosen_drop: float = Field(0.5, gt=0, description="fall of the chosen log-probability, nats a token")
    max_kl: float = Field(0.5, gt=0, description="KL to the start model, nats a token")
    max_repetition_rise: float = Field(0.2, gt=0, description="rise of the part of repeated 4-grams")
    checkpoint_every_s: float = Field(20.0, gt=0)


@step(
    "align.dpo",
    version=1,
    inputs={"model": Input("checkpoint", "start and reference"), "preferences": Input("preferences")},
    outputs={"checkpoint": Output("checkpoint")},
)
def dpo(ctx: Context, params: DpoParams) -> None:
    """Optimise preferences directly (DPO), under the collapse watch."""
    from liuyi.align.dpo import align_dpo

    align_dpo(ctx, params)
