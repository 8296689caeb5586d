"""Reward models: trained on pairs by Bradley-Terry, measured on pairs of prompts that training did not see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from liuyi.align.answers import Answers
from liuyi.align.objectives import bradley_terry
from liuyi.align.pairs import Pair, PairRows, encode_pairs, read_preferences
from liuyi.core.digest import canonical_json, sha256_bytes
from liuyi.core.effect import Table
from liuyi.core.errors import DataError
from liuyi.core.step import Context
from liuyi.evaluate.stats import wilson
from liuyi.finetune.tuning import trained_note
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder
from liuyi.model.lora import lora_adapter
from liuyi.model.merge import merge_adapter
from liuyi.model.reward import RewardModel, save_reward
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import Batch, Ints, ShuffledBatches
from liuyi.train.effect import training_effect
from liuyi.train.interfaces import LoopConfig, Loss, Result
from liuyi.train.lm import choose_compute_dtype
from liuyi.train.looking import keep_logs, let_export
from liuyi.train.loop import Trainer
from liuyi.train.milestones import publish_milestones
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gather import gather_model
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import prepare
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.align.steps import RewardParams


@dataclass(frozen=True)
class RewardBatch:
    """Answers of pairs, and by how much the chosen ones should lead, `[pairs]`."""

    answers: Answers
    margin: Tensor

    @property
    def packed(self) -> Batch:
        return self.answers.packed

    def to(self, device: torch.device) -> RewardBatch:
        return RewardBatch(self.answers.to(device), self.margin.to(device))


@dataclass(frozen=True)
class RewardRows:
    """Pairs by number, with their margins."""

    pairs: PairRows

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, rows: Ints) -> RewardBatch:
        return RewardBatch(self.pairs.read(rows), torch.tensor([self.pairs.pairs[row].margin for row in rows]))


@dataclass(frozen=True)
class BradleyTerry:
    """The objective, summed over pairs."""

    compute_dtype: torch.dtype = torch.float32
    unit = "pairs"

    def __call__(self, model: RewardModel, batch: RewardBatch) -> Loss:
        found = rewards(model, batch.answers, self.compute_dtype).view(-1, 2)
        lead = (found[:, 0] - found[:, 1]).detach()
        metrics = {"margin": lead.sum(), "accuracy": (lead > 0).float().sum()}
        return Loss(bradley_terry(found, batch.margin).sum(), len(found), metrics)


def rewards(model: RewardModel, answers: Answers, compute_dtype: torch.dtype = torch.float32) -> Tensor:
    """Reward of each answer, float32 `[answers]`."""
    packed = answers.packed
    found: Tensor = model(
        packed.tokens,
        answers.ends,
        positions=packed.positions,
        segments=packed.segments,
        compute_dtype=compute_dtype,
    )
    return found


def split_prompts(
    table: Sequence[Mapping[str, Any]], share: float
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Rows to train on and rows held out: all pairs of a prompt on one side, a function of the prompt alone."""
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row in table:
        place = int(sha256_bytes(canonical_json(row["prompt"]).encode())[:8], 16) / 2**32
        parts[place < share].append(row)
    return parts


@torch.no_grad()
def accuracy(model: RewardModel, pairs: Sequence[Pair], seq_len: int, pad_id: int) -> tuple[int, int]:
    """How many pairs have the higher reward for the chosen answer, and how many there are."""
    model.eval()
    rows, right = PairRows(pairs, seq_len, pad_id), 0
    for at in range(0, len(rows), 64):
        answers = rows.read(np.arange(at, min(at + 64, len(rows)))).to(model.decoder.device)
        found = rewards(model, answers).view(-1, 2)
        right += int((found[:, 0] > found[:, 1]).sum())
    return right, len(rows)


def align_reward(ctx: Context, params: RewardParams, world: World) -> None:
    """Train as `params` say and publish the reward model; an adapter is merged into it."""
    folder = ctx.input("model").path
    tokenizer = Tokenizer.load(folder)
    kept, apart = split_prompts(read_preferences(ctx.input("preferences").file("preferences.parquet")), params.heldout)
    if not apart:
        raise DataError("no prompt is held out", hint="raise heldout, or give more prompts")
    model = load_model(folder)
    longest = min(params.seq_len, model.config.context_tokens)
    encoded, unseen = (encode_pairs(part, tokenizer, longest) for part in (kept, apart))
    dtype = choose_compute_dtype(params.compute_dtype, ctx.workdir, world)
    prepare(model, params.tuning(), ctx.seed, dtype)
    trained = RewardModel(model)
    parallelize(trained, world, compute_dtype=dtype, recompute=params.recompute)
    pad_id = tokenizer.pad_id or 0
    rows = RewardRows(PairRows(encoded.pairs, params.seq_len, pad_id))
    ctx.log(f"{len(rows)} pairs, {len(unseen.pairs)} held out, {len(encoded.left_out)} left out; {trained_note(model)}")
    size = min(params.batch_pairs, len(rows))
    steps = params.max_steps or max(1, math.ceil(params.epochs * len(rows) / size))
    batches = ShuffledBatches(
        rows,
        batch_rows=size,
        seed=ctx.seed,
        micro_rows=params.micro_pairs,
        worker=world.data_rank,
        workers=world.data_size,
    )
    trainer = Trainer(
        trained,
        batches,
        BradleyTerry(dtype),
        Optimiser(trained, _optimiser(params)),
        make_schedule(params.schedule, steps=steps, warmup_steps=round(params.warmup * steps)),
        config=LoopConfig.of(params, steps),
        workdir=ctx.workdir,
        observer=ctx,
        world=world,
    )
    let_export(trainer, ctx, params)
    result = trainer.run()
    reward = gather_model(trained, world)
    if reward is None:
        return
    publish_milestones(ctx, params)
    if params.method == "lora":
        reward.decoder = _merged(folder, reward.decoder, params).to(reward.score.weight.device)
    found = accuracy(reward, unseen.pairs, params.seq_len, pad_id)
    _publish(ctx, params, reward, tokenizer, result, found, len(rows), encoded.left_out | unseen.left_out)


def _optimiser(params: RewardParams) -> OptimiserConfig:
    return OptimiserConfig(
        params.optimiser,
        lr=params.lr,
        score_lr=params.head_lr,
        b_lr_ratio=params.b_lr_ratio,
        layer_decay=params.layer_decay,
    )


def _publish(
    ctx: Context,
    params: RewardParams,
    reward: RewardModel,
    tokenizer: Tokenizer,
    result: Result,
    found: tuple[int, int],
    pairs: int,
    left_out: Mapping[str, str],
) -> None:
    """Publish the model; `found` is what `accuracy` gave, `pairs` how many it was trained on."""
    right, count = found
    low, high = wilson(right, count)
    with ctx.output("checkpoint") as out:
        about = {
            "stage": "alignment",
            "objective": "bradley-terry",
            "method": params.method,
            "steps": result.steps,
            "pairs": pairs,
            "loss": result.loss,
            "left_out": left_out,
            "heldout": {"pairs": count, "right": right, "low": low, "high": high},
            "seed": ctx.seed,
        }
        save_reward(out.path, reward, tokenizer, about)
        keep_logs(ctx.workdir, out.path)
        summary = (
            f"A reward model of {pairs:,} pairs. On {count:,} pairs of prompts held out it prefers the chosen "
            f"answer in {right / count:.1%} ({low:.1%} to {high:.1%})."
        )
        table = Table(
            title="Pairs held out",
            columns=("pairs", "right", "accuracy", "low", "high"),
            rows=((count, right, right / count, low, high),),
            note="Wilson's interval at 95 %",
        )
        training_effect(out.path, "alignment", "The reward model", summary, ("loss", "accuracy"), [table]).save(
            out.path
        )
        out.metrics.update(loss=result.loss, steps=result.steps, pairs=pairs, heldout_accuracy=right / count)
        out.metrics.update(heldout_low=low, heldout_high=high, **result.figures)


def _merged(folder: Any, trained: Decoder, params: RewardParams) -> Decoder:
    """The start model with what was trained in its weights."""
    lora = params.lora()
    assert lora is not None
    return merge_adapter(load_model(folder), lora_adapter(trained, lora))[0]
