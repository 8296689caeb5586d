"""Learning from preferences: one driver for every objective, under the collapse watch.

Losses are summed over pairs (over answers with `kto`) and divided by the number of the whole global batch. To the
objectives of `objectives.py` that have none, a term of the chosen answers' own likelihood may be added (Pang et al.
2024, arXiv 2404.19733): they are content when both answers fall, as long as the rejected one falls faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from liuyi.align import objectives
from liuyi.align.answers import Answers, answer_logprobs
from liuyi.align.labels import LabelBatch, LabelRows, encode_labels, with_reference_point
from liuyi.align.objectives import Objective
from liuyi.align.pairs import PairRows, encode_pairs, read_preferences
from liuyi.align.watch import CollapseWatch, Probe, Thresholds
from liuyi.core.step import Context
from liuyi.finetune.tuning import save_tuned, trained_note, tuned_output
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder
from liuyi.model.lora import without_lora
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import ShuffledBatches
from liuyi.train.effect import training_effect
from liuyi.train.interfaces import LoopConfig, Loss, Result
from liuyi.train.lm import choose_compute_dtype
from liuyi.train.looking import let_export, let_speak
from liuyi.train.loop import Trainer
from liuyi.train.milestones import publish_milestones
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import Example
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gather import gather_model
from liuyi.train.samples import chat_prompts
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import prepare
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.align.steps import PreferenceParams

REFERENCE_FREE = ("simpo", "orpo")
"""Objectives that need no reference log-probabilities."""
NAMED = 20
"""How many left-out rows the log names one by one; `liuyi.json` names all."""


@dataclass(frozen=True)
class PairObjective:
    """Any objective of pairs, summed over them."""

    name: Objective = "dpo"
    beta: float = 0.1
    gamma: float = 1.0
    label_smoothing: float = 0.1
    nll_weight: float = 0.0
    compute_dtype: torch.dtype = torch.float32
    unit = "pairs"

    def __call__(self, model: Decoder, batch: Answers) -> Loss:
        policy = answer_logprobs(model, batch, self.compute_dtype).view(-1, 2)
        reference, lengths = batch.reference.view(-1, 2), batch.lengths.view(-1, 2)
        nll = -policy[:, 0] / lengths[:, 0]
        losses = self.losses(policy, reference, lengths) + self.nll_weight * nll
        with torch.no_grad():
            rewards = self.rewards(policy, reference, lengths)
            margin = rewards[:, 0] - rewards[:, 1]
            metrics = {
                "margin": margin.sum(),
                "accuracy": (margin > 0).float().sum(),
                "chosen_reward": rewards[:, 0].sum(),
                "rejected_reward": rewards[:, 1].sum(),
                "chosen_nll": nll.sum(),
            }
        return Loss(losses.sum(), len(policy), metrics)

    def losses(self, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        """Loss of each pair, `[pairs]`, without the likelihood term."""
        match self.name:
            case "cdpo":
                return objectives.cdpo(policy, reference, self.beta, self.label_smoothing)
            case "ipo":
                return objectives.ipo(policy, reference, lengths, self.beta)
            case "simpo":
                return objectives.simpo(policy, lengths, self.beta, self.gamma)
            case "orpo":
                return objectives.orpo(policy, lengths, self.beta)
        return objectives.dpo(policy, reference, self.beta)

    def rewards(self, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        """What the objective takes for the reward of each answer, `[pairs, 2]`."""
        if self.name in REFERENCE_FREE:
            return self.beta * policy / lengths
        gain = policy - reference
        return self.beta * (gain / lengths if self.name == "ipo" else gain)


@dataclass(frozen=True)
class Kto:
    """The objective of labelled answers, summed over them."""

    beta: float = 0.1
    weights: tuple[float, float] = (1.0, 1.0)
    """Of wanted and of unwanted answers."""
    compute_dtype: torch.dtype = torch.float32
    unit = "answers"

    def __call__(self, model: Decoder, batch: LabelBatch) -> Loss:
        gain = answer_logprobs(model, batch.answers, self.compute_dtype) - batch.answers.reference
        losses = objectives.kto(gain, batch.desirable, batch.kl, self.beta, self.weights)
        lead = self.beta * (gain.detach() - batch.kl)
        metrics = {
            "margin": torch.where(batch.desirable, lead, -lead).sum(),
            "accuracy": ((lead > 0) == batch.desirable).float().sum(),
            "kl": batch.kl * len(gain),
        }
        return Loss(losses.sum(), len(gain), metrics)


@dataclass(frozen=True)
class _Material:
    """What is learnt from, whichever objective it is for."""

    rows: Any
    objective: Any
    wanted: list[tuple[str, Example]]
    """Answers to look at in the collapse watch, by the ids of their rows."""
    left_out: dict[str, str]


def align_preference(ctx: Context, params: PreferenceParams, world: World) -> None:
    """Train as `params` say, under the collapse watch, and publish the checkpoint or the adapter."""
    folder = ctx.input("model").path
    tokenizer = Tokenizer.load(folder)
    table = read_preferences(ctx.input("preferences").file("preferences.parquet"))
    model = load_model(folder)
    dtype = choose_compute_dtype(params.compute_dtype, ctx.workdir, world)
    prepare(model, params.tuning(), ctx.seed, dtype)
    model.to(world.device)
    material = (_labels if params.objective == "kto" else _pairs)(params, table, model, tokenizer, dtype)
    count, left_out = len(material.rows), material.left_out
    for id, reason in list(left_out.items())[:NAMED]:
        ctx.log(f"left out {id}: {reason}")
    ctx.log(f"{count} {material.objective.unit}, {len(left_out)} left out; {trained_note(model)}")
    steps = params.max_steps or max(1, math.ceil(params.epochs * count / min(params.batch_pairs, count)))
    reference = _watched_reference(params, model, folder, world) if params.watch and world.leads else None
    parallelize(model, world, compute_dtype=dtype, recompute=params.recompute)
    batches = _batches(params, material.rows, model, dtype, ctx.seed, world)
    watch = None
    if params.watch:
        probe = Probe.choose(table, material.wanted, tokenizer, params.probe_prompts, ctx.seed, params.seq_len, dtype)
        watch = _collapse_watch(params, probe, model, reference, steps, ctx, world)
    trainer: Trainer[Decoder, Any] = Trainer(
        model,
        batches,
        material.objective,
        Optimiser(model, _optimiser(params)),
        make_schedule(params.schedule, steps=steps, warmup_steps=round(params.warmup * steps)),
        config=LoopConfig.of(params, steps),
        workdir=ctx.workdir,
        observer=ctx,
        monitor=watch,
        world=world,
    )
    asked = [(row["prompt"], row["tools"]) for row in table if row["id"] not in left_out]
    let_speak(
        trainer,
        ctx,
        params,
        tokenizer,
        lambda texts: chat_prompts(texts, asked, tokenizer),
    )
    let_export(trainer, ctx, params)
    result = trainer.run()
    whole = gather_model(model, world)
    if whole is not None:
        publish_milestones(ctx, params)
        _publish(ctx, params, material, whole, tokenizer, result, watch)


def _watched_reference(params: PreferenceParams, model: Decoder, folder: Path, world: World) -> Decoder:
    """The model that the watch compares with: what is trained without its adapter where the weights are the same."""
    # What is cut up cannot share its weights, and PiSSA's are not those that it began with.
    shared = params.method == "lora" and not params.pissa and world.layout.shard == 1
    return without_lora(model) if shared else load_model(folder).to(world.device)


def _batches(
    params: PreferenceParams, rows: Any, model: Decoder, dtype: torch.dtype, seed: int, world: World
) -> Callable[[int], Sequence[Any]]:
    """Batches of the rows, with what the objective needs of the reference, which the model still is."""
    batches: ShuffledBatches[Any] = ShuffledBatches(
        rows,
        batch_rows=min(params.batch_pairs, len(rows)),
        seed=seed,
        micro_rows=params.micro_pairs,
        worker=world.data_rank,
        workers=world.data_size,
    )
    if params.objective not in REFERENCE_FREE:
        rows.take_reference(batches, model, dtype, world)
    return with_reference_point(batches, model, dtype, world) if params.objective == "kto" else batches


def _collapse_watch(
    params: PreferenceParams,
    probe: Probe,
    model: Decoder,
    reference: Decoder | None,
    steps: int,
    observer: Context,
    world: World,
) -> CollapseWatch:
    return CollapseWatch(
        probe,
        model,
        reference,
        every=params.watch_every,
        steps=steps,
        thresholds=Thresholds(
            chosen_drop=params.max_chosen_drop, kl=params.max_kl, repetition_rise=params.max_repetition_rise
        ),
        observer=observer,
        world=world,
    )


def _optimiser(params: PreferenceParams) -> OptimiserConfig:
    return OptimiserConfig(
        params.optimiser,
        lr=params.lr,
        betas=(0.9, 0.99),
        b_lr_ratio=params.b_lr_ratio,
        layer_decay=params.layer_decay,
    )


def _publish(
    ctx: Context,
    params: PreferenceParams,
    material: _Material,
    model: Decoder,
    tokenizer: Tokenizer,
    result: Result,
    watch: CollapseWatch | None,
) -> None:
    count, unit = len(material.rows), material.objective.unit
    with ctx.output(tuned_output(params)) as out:
        about = {
            "stage": "alignment",
            "objective": params.objective,
            "method": params.method,
            "beta": params.strength,
            "steps": result.steps,
            unit: count,
            "loss": result.loss,
            "left_out": material.left_out,
            "stopped": result.stopped,
            "skipped": result.skipped,
            "jumps": [jump.step for jump in result.jumps],
            "watch": watch.report() if watch else None,
            "seed": ctx.seed,
        }
        save_tuned(out, ctx, params, model, tokenizer, about)
        ended = f"The collapse watch ended it: {result.stopped}." if result.stopped else "No bound was broken."
        name = params.objective.upper().replace("CDPO", "cDPO").replace("SIMPO", "SimPO")
        summary = f"{name} on {count:,} {unit} in {result.steps} steps. {ended if watch else ''}".strip()
        more = [watch.table()] if watch else []
        training_effect(out.path, "alignment", "The training", summary, ("loss", "accuracy"), more).save(out.path)
        out.metrics.update({"loss": result.loss, "steps": result.steps, unit: count})
        out.metrics["stopped"] = float(bool(result.stopped))
        out.metrics.update(result.figures)


def _pairs(
    params: PreferenceParams, table: list[dict[str, Any]], model: Decoder, tokenizer: Tokenizer, dtype: torch.dtype
) -> _Material:
    encoded = encode_pairs(table, tokenizer, min(params.seq_len, model.config.context_tokens))
    rows = PairRows(encoded.pairs, params.seq_len, pad_id=tokenizer.pad_id or 0)
    objective = PairObjective(
        params.objective,
        beta=params.strength,
        gamma=params.gamma,
        label_smoothing=params.label_smoothing,
        nll_weight=params.likelihood,
        compute_dtype=dtype,
    )
    wanted = [(pair.id, pair.chosen) for pair in encoded.pairs]
    return _Material(rows, objective, wanted, encoded.left_out)


def _labels(
    params: PreferenceParams, table: list[dict[str, Any]], model: Decoder, tokenizer: Tokenizer, dtype: torch.dtype
) -> _Material:
    encoded = encode_labels(table, tokenizer, min(params.seq_len, model.config.context_tokens))
    rows = LabelRows(encoded.labels, params.seq_len, pad_id=tokenizer.pad_id or 0)
    objective = Kto(params.strength, (params.desirable_weight, params.undesirable_weight), dtype)
    wanted = [(label.id, label.answer) for label in encoded.labels if label.desirable]
    return _Material(rows, objective, wanted, encoded.left_out)
