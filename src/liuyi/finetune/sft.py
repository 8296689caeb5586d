"""Supervised fine-tuning: the same loop and objective as pretraining, on packed conversations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from liuyi.core.step import Context
from liuyi.finetune.chats import Chats, encode_chats, read_chats
from liuyi.finetune.tuning import save_tuned, trained_note, tuned_output
from liuyi.model.checkpoint import load_config, load_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import ShuffledBatches
from liuyi.train.effect import training_effect
from liuyi.train.ema import Ema
from liuyi.train.interfaces import LoopConfig, Result
from liuyi.train.lm import CausalLM, choose_compute_dtype
from liuyi.train.looking import let_export, let_speak
from liuyi.train.loop import Trainer
from liuyi.train.milestones import publish_milestones
from liuyi.train.neftune import Neftune
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.packing import PackedRows
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.context import cut_rows
from liuyi.train.parallel.gather import gather_model
from liuyi.train.parallel.head import cross_entropy_over
from liuyi.train.parallel.shard import loading_dtype
from liuyi.train.samples import chat_prompts
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import prepare
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.finetune.steps import SftParams

FULL_LR, ADAPTER_LR = 0.005, 2e-4
"""Peak learning rates where none is given: of Muon on all weights, of AdamW on an adapter."""
NAMED = 20
"""How many left-out conversations the log names one by one; `liuyi.json` names all."""


def finetune(ctx: Context, params: SftParams, world: World) -> None:
    """Fine-tune as `params` say, together with the other processes of `world`, and publish checkpoint or adapter."""
    folder = ctx.input("model").path
    tokenizer = Tokenizer.load(folder)
    table = read_chats(ctx.input("chats").file("chats.parquet"))
    longest = min(params.seq_len, load_config(folder).context_tokens)
    chats = encode_chats(table, tokenizer, longest, lambda done: ctx.progress(done, len(table), "conversations read"))
    for id, reason in list(chats.left_out.items())[:NAMED]:
        ctx.log(f"left out {id}: {reason}")
    if chats.left_out:
        ctx.log(f"left out {len(chats.left_out)} of {len(table)} conversations")
    # Adapters are made from what they stand beside, in float32.
    model = load_model(folder, torch.float32 if params.method == "lora" else loading_dtype(folder, world))
    dtype = choose_compute_dtype(params.compute_dtype, ctx.workdir, world)
    prepare(model, params.tuning(), ctx.seed, dtype)
    ctx.log(trained_note(model))
    rows = PackedRows(chats.examples, params.seq_len, pad_id=tokenizer.pad_id or 0)
    batch_rows = min(len(rows), max(1, params.batch_tokens // params.seq_len))
    steps = params.max_steps or max(1, math.ceil(params.epochs * len(rows) / batch_rows))
    parallelize(model, world, compute_dtype=dtype, recompute=params.recompute, fp8=params.fp8, compiled=params.compile)
    ema = Ema(model, params.ema) if params.ema else None
    batches = ShuffledBatches(
        rows,
        batch_rows=batch_rows,
        seed=ctx.seed,
        micro_rows=params.micro_rows,
        worker=world.data_rank,
        workers=world.data_size,
    )
    noise = Neftune(model, params.neftune_alpha, ctx.seed) if params.neftune_alpha else None
    trainer = Trainer(
        model,
        noise.seeded(batches, (world.data_rank * batches.share, rows.seq_len)) if noise else cut_rows(batches, world),
        CausalLM(dtype, cross_entropy_over(world)),
        Optimiser(model, _optimiser(params)),
        make_schedule(params.schedule, steps=steps, warmup_steps=round(params.warmup * steps)),
        config=LoopConfig.of(params, steps),
        workdir=ctx.workdir,
        observer=ctx,
        monitor=ema,
        world=world,
    )
    filled = chats.tokens / (len(rows) * params.seq_len)
    ctx.log(
        f"{len(chats.examples)} conversations in {len(rows)} rows, {filled:.0%} full; "
        f"{steps} steps of {batch_rows * params.seq_len} tokens"
    )
    learnt = [chat[1:] for chat in table if chat[0] not in chats.left_out]
    let_speak(trainer, ctx, params, tokenizer, lambda texts: chat_prompts(texts, learnt, tokenizer))
    let_export(trainer, ctx, params)
    result = trainer.run()
    if ema:
        ema.apply(model)
    whole = gather_model(model, world)
    if whole is not None:
        publish_milestones(ctx, params)
        _publish(ctx, params, whole, tokenizer, result, chats)


def _publish(
    ctx: Context, params: SftParams, model: Decoder, tokenizer: Tokenizer, result: Result, chats: Chats
) -> None:
    with ctx.output(tuned_output(params)) as out:
        extra = {
            "stage": "fine-tuning",
            "method": params.method,
            "ema": params.ema,
            "steps": result.steps,
            "tokens": result.tokens,
            "loss": result.loss,
            "skipped": result.skipped,
            "jumps": [jump.step for jump in result.jumps],
            "conversations": len(chats.examples),
            "left_out": chats.left_out,
            "seed": ctx.seed,
        }
        save_tuned(out, ctx, params, model, tokenizer, extra)
        summary = (
            f"{len(chats.examples):,} conversations, {result.tokens:,} tokens learnt in {result.steps} steps: "
            f"loss {result.loss:.4f}. {len(chats.left_out)} conversations were left out."
        )
        training_effect(out.path, "fine-tuning", "The training", summary).save(out.path)
        out.metrics.update(
            loss=result.loss,
            tokens=result.tokens,
            steps=result.steps,
            conversations=len(chats.examples),
            left_out=len(chats.left_out),
            **result.figures,
        )


def _optimiser(params: SftParams) -> OptimiserConfig:
    """As given; adapters are stepped by AdamW unless the owner says otherwise, and at another rate."""
    adapter = params.method == "lora"
    return OptimiserConfig(
        params.optimiser or ("adamw" if adapter else "muon"),
        lr=params.lr or (ADAPTER_LR if adapter else FULL_LR),
        embed_lr=params.embed_lr,
        weight_decay=params.weight_decay,
        embed_weight_decay=params.embed_weight_decay,
        norm_weight_decay=params.norm_weight_decay,
        b_lr_ratio=params.b_lr_ratio,
        layer_decay=params.layer_decay,
    )
