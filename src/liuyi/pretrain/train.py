"""Pretraining: from tokens to a checkpoint, from scratch or on from a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from liuyi.core.errors import ModelError
from liuyi.core.step import Context
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.bigram import bigram_embeddings
from liuyi.pretrain.branch import branch_off, refuse_to_begin_anew
from liuyi.pretrain.params import DecoderParams
from liuyi.pretrain.size import Recommended, config_for_size, parse_size, recommended
from liuyi.train.batches import Batch, ShuffledBatches
from liuyi.train.data import Stream, TokenRows, TokenStream
from liuyi.train.effect import training_effect
from liuyi.train.guards import GuardConfig
from liuyi.train.interfaces import LoopConfig, Monitor, Observer
from liuyi.train.lm import CausalLM, choose_compute_dtype
from liuyi.train.looking import keep_logs, let_export, let_speak
from liuyi.train.loop import Trainer
from liuyi.train.milestones import publish_milestones
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.context import cut_rows
from liuyi.train.parallel.gather import gather_model
from liuyi.train.parallel.head import cross_entropy_over
from liuyi.train.parallel.shard import loading_dtype
from liuyi.train.samples import text_prompts
from liuyi.train.schedule import make_schedule
from liuyi.train.tuning import demand_whole_weights
from liuyi.train.world import World

if TYPE_CHECKING:
    from liuyi.pretrain.steps import TrainParams

DEFAULT_SIZE = "5m"


def pretrain(ctx: Context, params: TrainParams, world: World) -> None:
    """Train as `params` say, together with the other processes of `world`, and publish the checkpoint.

    Raises ModelError when tokens, tokenizer and model do not belong together.
    """
    stream = TokenStream(ctx.input("tokens").path)
    tokenizer = Tokenizer.load(ctx.input("tokenizer").path)
    model = starting_model(ctx, params, stream, tokenizer, world)
    batch_rows = rows_in_batch(model, params)
    if not ctx.has("model"):
        fresh_weights(model, params.init, stream, ctx.seed)
    first_step = 0
    if ctx.has("milestones"):
        params, first_step = branch_off(ctx, params, model, len(stream), world)
    elif params.cooldown_steps or params.branch_step is not None:
        raise ModelError("there is nothing to branch off from", hint="give the step the milestones of a run")
    trainer = make_trainer(
        model,
        stream,
        params,
        token_budget=params.token_budget or params.epochs * len(stream),
        seed=ctx.seed,
        workdir=ctx.workdir,
        observer=ctx,
        world=world,
        first_step=first_step,
        prepare=refuse_to_begin_anew if ctx.has("milestones") else lambda: None,
    )
    parameters = model.config.num_parameters
    ctx.log(f"{parameters / 1e6:.1f}M parameters, {trainer.config.steps} steps of {batch_rows * params.seq_len} tokens")
    let_speak(trainer, ctx, params, tokenizer, lambda texts: text_prompts(texts, tokenizer, stream.eos_id))
    let_export(trainer, ctx, params)
    result = trainer.run()
    whole = gather_model(model, world)
    if whole is None:
        return
    publish_milestones(ctx, params)
    with ctx.output("checkpoint") as out:
        extra = {
            "stage": "pretraining",
            "steps": result.steps,
            "tokens": result.tokens,
            "epochs": result.tokens / len(stream),
            "loss": result.loss,
            "skipped": result.skipped,
            "jumps": [jump.step for jump in result.jumps],
            "seq_len": params.seq_len,
            "batch_rows": batch_rows,
            "seed": ctx.seed,
        }
        save_model(out.path, whole, tokenizer, extra)
        keep_logs(ctx.workdir, out.path)
        summary = (
            f"{parameters / 1e6:.1f}M parameters on {result.tokens / 1e6:.2f}M tokens "
            f"({result.tokens / len(stream):.2g} passes): loss {result.loss:.3f}."
        )
        training_effect(out.path, "pretraining", "The training", summary).save(out.path)
        out.metrics.update(loss=result.loss, tokens=result.tokens, steps=result.steps, parameters=parameters)
        out.metrics.update(result.figures)


def make_trainer(
    model: Decoder,
    stream: Stream,
    params: DecoderParams,
    *,
    token_budget: float,
    seed: int,
    workdir: Path,
    observer: Observer,
    prepare: Callable[[], None] = lambda: None,
    monitor: Monitor | None = None,
    world: World | None = None,
    first_step: int = 0,
) -> Trainer[Decoder, Batch]:
    """A trainer of `model` for `token_budget` tokens of `stream`, rounded up to whole batches.

    `first_step` is that of the checkpoint in `workdir` that a branch begins from.
    With several processes in the `world` the model's weights must be set already.
    """
    world = world or World()
    rows = TokenRows(stream, params.seq_len)
    batch_rows = rows_in_batch(model, params)
    steps = max(1, math.ceil(token_budget / (batch_rows * params.seq_len)))
    batches = ShuffledBatches(
        rows,
        batch_rows=batch_rows,
        seed=seed,
        micro_rows=params.micro_rows,
        worker=world.data_rank,
        workers=world.data_size,
        phase_starts=rows.phase_starts,
    )
    dtype = choose_compute_dtype(params.compute_dtype, workdir, world)
    parallelize(model, world, compute_dtype=dtype, recompute=params.recompute, fp8=params.fp8, compiled=params.compile)
    return Trainer(
        model,
        cut_rows(batches, world),
        CausalLM(dtype, cross_entropy_over(world)),
        Optimiser(model, optimiser_config(params, recommended(model.config))),
        make_schedule(
            params.schedule,
            steps=steps,
            warmup_steps=round(params.warmup * steps),
            decay_steps=round(params.decay * steps),
        ),
        config=replace(LoopConfig.of(params, steps), guard=GuardConfig(first_step=first_step)),
        workdir=workdir,
        observer=observer,
        monitor=monitor,
        prepare=prepare,
        world=world,
    )


def rows_in_batch(model: Decoder, params: DecoderParams) -> int:
    """Rows of a global batch: as many as are asked for, else as go with the model's size."""
    return max(1, (params.batch_tokens or recommended(model.config).batch_tokens) // params.seq_len)


def optimiser_config(params: DecoderParams, advice: Recommended) -> OptimiserConfig:
    """Learning rates as given, else those that go with the size; AdamW alone takes a third of them."""
    scale = 1.0 if params.optimiser == "muon" else 1 / 3
    return OptimiserConfig(
        params.optimiser,
        lr=params.lr or advice.lr * scale,
        embed_lr=params.embed_lr or params.lr or advice.embed_lr * scale,
        scalar_lr=params.lr or advice.scalar_lr * scale,
        weight_decay=params.weight_decay,
        embed_weight_decay=params.embed_weight_decay,
        norm_weight_decay=params.norm_weight_decay,
    )


def starting_model(
    ctx: Context, params: TrainParams, stream: TokenStream, tokenizer: Tokenizer, world: World
) -> Decoder:
    """The model to go on from, or a fresh one."""
    if not ctx.has("model"):
        return fresh_model(params, stream, tokenizer)
    _demand_same_vocabulary(stream, tokenizer)
    if params.size or params.hidden_size or params.num_hidden_layers or params.experts or params.tie_embeddings:
        raise ModelError(
            "the shape of a model that goes on training is what it is",
            hint="leave out size, hidden_size, num_hidden_layers, experts and tie_embeddings",
        )
    folder = ctx.input("model").path
    # A milestone's weights are put in place of these, in float32.
    model = load_model(folder, torch.float32 if ctx.has("milestones") else loading_dtype(folder, world))
    demand_whole_weights(model)
    if model.config.vocab_size < stream.vocab_size:
        raise ModelError(
            f"the model knows {model.config.vocab_size} token ids, the tokens use {stream.vocab_size}",
            hint="make the tokens with the model's own tokenizer",
        )
    if model.config.context_tokens < params.seq_len:
        raise ModelError(
            f"rows of {params.seq_len} tokens are longer than the model's context of {model.config.context_tokens}",
            hint=f"set seq_len: {model.config.context_tokens}; longer documents go on in the next row",
        )
    return model


def fresh_model(params: DecoderParams, stream: Stream, tokenizer: Tokenizer) -> Decoder:
    """A decoder of the size that `params` name; its weights are not set yet.

    Raises ModelError for one whose weights alone are more than this machine has memory for.
    """
    _demand_same_vocabulary(stream, tokenizer)
    config = config_for_size(
        parse_size(params.size or DEFAULT_SIZE),
        vocab_size=stream.vocab_size,
        seq_len=params.seq_len,
        eos_id=stream.eos_id,
        pad_id=tokenizer.pad_id,
        tie_embeddings=params.tie_embeddings,
    )
    if params.hidden_size:
        heads = max(1, params.hidden_size // config.head_dim)
        config = replace(
            config,
            hidden_size=params.hidden_size,
            intermediate_size=3 * params.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        )
    if params.num_hidden_layers:
        config = replace(config, num_hidden_layers=params.num_hidden_layers)
    if params.experts:
        config = replace(
            config,
            family="qwen3_moe",
            num_experts=params.experts,
            num_experts_per_tok=params.experts_per_token,
            moe_intermediate_size=max(1, config.intermediate_size // params.experts_per_token),
        )
    _demand_room(config)
    return Decoder(config)


def _demand_room(config: DecoderConfig) -> None:
    needed, there = 4 * config.num_parameters, psutil.virtual_memory().total
    if needed > there:
        raise ModelError(
            f"{config.num_parameters / 1e6:,.1f}M parameters take {needed / 1e9:,.1f} GB before they learn anything, "
            f"and this machine has {there / 1e9:,.1f} GB",
            hint="take a smaller size, or fewer layers",
        )


def _demand_same_vocabulary(stream: Stream, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size != stream.vocab_size:
        raise ModelError(
            f"the tokens were made with {stream.vocab_size} token ids, the tokenizer has {tokenizer.vocab_size}",
            hint="give the step the tokenizer that made the tokens",
        )


def fresh_weights(model: Decoder, init: str, stream: Stream, seed: int) -> None:
    """Weights to start from; with `bigram`, layers add nothing yet and embeddings and head know the bigrams."""
    init_weights(model, seed)
    if init == "random":
        return
    if model.lm_head is None:
        raise ModelError("tied embeddings cannot hold a table of bigrams", hint="set init: random")
    embedding, head = bigram_embeddings(
        stream.tokens,
        vocab_size=model.config.vocab_size,
        hidden_size=model.config.hidden_size,
        eos_id=stream.eos_id,
        seed=seed,
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
        model.lm_head.weight.copy_(torch.from_numpy(head))
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
