"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

For a pair with log-probabilities π of the policy and ρ of the reference:

    loss = -log σ(β · ((π_chosen - ρ_chosen) - (π_rejected - ρ_rejected))) - nll_weight · π_chosen / tokens_chosen

The second term (Pang et al. 2024, arXiv 2404.19733) keeps the chosen answers themselves probable: the first is
content when both fall, as long as the rejected ones fall faster.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from liuyi.align.pairs import PairBatch, PairRows, answer_logprobs, encode_pairs, read_preferences, with_reference
from liuyi.align.watch import CollapseWatch, Probe, Thresholds
from liuyi.core.step import Context
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import ShuffledBatches
from liuyi.train.effect import training_effect
from liuyi.train.lm import choose_compute_dtype
from liuyi.train.loop import LOG_FILE, LoopConfig, Loss, Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.schedule import make_schedule

if TYPE_CHECKING:
    from liuyi.align.steps import DpoParams


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Loss of each pair, `[pairs]`, from log-probabilities `[pairs, 2]` of chosen and rejected answers."""
    gain = policy - reference
    return -functional.logsigmoid(beta * (gain[:, 0] - gain[:, 1]))


@dataclass(frozen=True)
class Dpo:
    """The objective: summed over pairs, which are what it counts."""

    beta: float = 0.1
    nll_weight: float = 0.0
    compute_dtype: torch.dtype = torch.float32

    def __call__(self, model: Decoder, batch: PairBatch) -> Loss:
        policy = answer_logprobs(model, batch, self.compute_dtype).view(-1, 2)
        reference = batch.reference.view(-1, 2)
        nll = -policy[:, 0] / batch.lengths.view(-1, 2)[:, 0]
        losses = dpo_loss(policy, reference, self.beta) + self.nll_weight * nll
        gain = (policy - reference).detach()
        margin = gain[:, 0] - gain[:, 1]
        metrics = {
            "margin": (self.beta * margin).sum(),
            "accuracy": (margin > 0).float().sum(),
            "chosen_gain": gain[:, 0].sum(),
            "rejected_gain": gain[:, 1].sum(),
            "chosen_nll": nll.detach().sum(),
        }
        return Loss(losses.sum(), batch.count, metrics)


def align_dpo(ctx: Context, params: DpoParams) -> None:
    """Train as `params` say, under the collapse watch, and publish the checkpoint."""
    folder = ctx.input("model").path
    tokenizer = Tokenizer.load(folder)
    table = read_preferences(ctx.input("preferences").file("preferences.parquet"))
    encoded = encode_pairs(table, tokenizer, params.seq_len)
    for id, reason in list(encoded.left_out.items())[:20]:
        ctx.log(f"left out {id}: {reason}")
    model = load_model(folder)
    dtype = choose_compute_dtype(params.compute_dtype, ctx.workdir)
    rows = PairRows(encoded.pairs, params.seq_len, pad_id=tokenizer.pad_id or 0)
    ctx.log(f"{len(rows)} pairs, {len(encoded.left_out)} left out")
    rows = with_reference(rows, model.eval(), dtype)
    batch_pairs = min(params.batch_pairs, len(rows))
    steps = params.max_steps or max(1, math.ceil(params.epochs * len(rows) / batch_pairs))
    watch = None
    if params.watch:
        probe = Probe.choose(table, encoded.pairs, tokenizer, params.probe_prompts, ctx.seed, params.seq_len)
        thresholds = Thresholds(
            chosen_drop=params.max_chosen_drop, kl=params.max_kl, repetition_rise=params.max_repetition_rise
        )
        watch = CollapseWatch(
            probe, model, load_model(folder), every=params.watch_every, steps=steps, thresholds=thresholds, observer=ctx
        )
    trainer = Trainer(
        model,
        ShuffledBatches(rows, batch_rows=batch_pairs, seed=ctx.seed, micro_rows=params.micro_pairs),
        Dpo(params.beta, params.nll_weight, dtype),
        Optimiser(model, OptimiserConfig(params.optimiser, lr=params.lr, betas=(0.9, 0.99))),
        make_schedule(params.schedule, steps=steps, warmup_steps=round(params.warmup * steps)),
        config=LoopConfig(steps, clip_norm=params.clip_norm, checkpoint_every_s=params.checkpoint_every_s),
        workdir=ctx.workdir,
        observer=ctx,
        monitor=watch,
    )
    result = trainer.run()
    with ctx.output("checkpoint") as out:
        extra = {
            "stage": "alignment",
            "objective": "dpo",
            "beta": params.beta,
            "steps": result.steps,
            "pairs": len(rows),
            "loss": result.loss,
            "left_out": encoded.left_out,
            "stopped": result.stopped,
            "skipped": result.skipped,
            "jumps": [jump.step for jump in result.jumps],
            "watch": watch.report() if watch else None,
            "seed": ctx.seed,
        }
        save_model(out.path, model, tokenizer, extra)
        shutil.copy(ctx.workdir / LOG_FILE, out.path / LOG_FILE)
        ended = f"The collapse watch ended it: {result.stopped}." if result.stopped else "No bound was broken."
        summary = f"DPO on {len(rows):,} pairs in {result.steps} steps. {ended if watch else ''}".strip()
        more = [watch.table()] if watch else []
        training_effect(out.path, "alignment", "The training", summary, ("loss", "accuracy"), more).save(out.path)
        out.metrics.update(loss=result.loss, steps=result.steps, pairs=len(rows), stopped=float(bool(result.stopped)))
