"""Short runs of a tiny decoder under any layout, for tests that compare layouts: functions that ranks can import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from parallel_models import divisible_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.lora import LoraConfig, add_lora
from liuyi.train.batches import IGNORE, Batch, Ints, ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.ema import Ema
from liuyi.train.guards import GuardConfig
from liuyi.train.interfaces import LoopConfig, Result
from liuyi.train.lm import CausalLM
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import Trainer
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.context import cut_rows
from liuyi.train.parallel.head import cross_entropy_over
from liuyi.train.schedule import make_schedule
from liuyi.train.world import Layout, World, join


class Uneven:
    """Rows of which some have few targets, and some none: row r loses its first 9·r modulo 41 of 32."""

    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Ints) -> Batch:
        batch = self.rows.read(rows)
        targets = batch.targets.clone()
        for target, row in zip(targets, rows.tolist(), strict=True):
            target[: 9 * row % 41] = IGNORE
        return replace(batch, targets=targets)


@dataclass(frozen=True)
class Run:
    """What to train, and on what."""

    layout: Layout = field(default_factory=Layout)
    optimiser: str = "adamw"
    steps: int = 6
    batch_rows: int = 8
    micro_rows: int = 1
    seed: int = 1
    shape: str = ""
    """One of `parallel_models.SHAPES` in place of the tiny model."""
    experts: bool = False
    lora: bool = False
    compute_dtype: torch.dtype = torch.float32
    faults: str = ""
    poisoned: tuple[int, int] | None = None
    """Rank and batch of a loss that is not a number."""
    verify_every: int = 0
    checkpoint_every_s: float = 1000.0
    weight_decay: float = 0.1
    ema: float = 0.0
    """Decay of a moving average, which the weights end as."""

    @property
    def alone(self) -> Run:
        """The same run in one process."""
        return replace(self, layout=Layout())


@dataclass(frozen=True)
class Trained:
    log: list[dict[str, Any]]
    weights: dict[str, Any]
    result: Result
    told: list[str]
    metrics: list[tuple[str, float, int | None]]

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of each step."""
        return [(row["loss"], row["grad_norm"]) for row in self.log]


def a_model(run: Run) -> Decoder:
    model = divisible_model(run.shape) if run.shape else tiny_model(run.seed)
    if run.experts:
        experts = {"num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.0}
        model = Decoder(replace(model.config, family="qwen3_moe", **experts))  # type: ignore[arg-type]
        init_weights(model, run.seed)
    if run.lora:
        add_lora(model, LoraConfig(rank=4, dora=True), seed=3)
    return model


def train(folder: Path, run: Run, world: World | None = None) -> Trained:
    """Train in `folder`, as one of the processes that torchrun has started or alone."""
    world = world or (join(run.layout) if run.layout.size > 1 else World())
    if world.leads and not (folder / "tokens.json").exists():
        write_tokens(folder, random_documents(60))
    world.barrier()
    model = a_model(run)
    parallelize(model, world, compute_dtype=run.compute_dtype)
    batches = ShuffledBatches(
        Uneven(TokenRows(TokenStream(folder), 32)),
        batch_rows=run.batch_rows,
        seed=5,
        micro_rows=run.micro_rows,
        worker=world.data_rank,
        workers=world.data_size,
    )
    own_tokens = cut_rows(batches, world)
    seen: list[int] = []

    def reading(index: int) -> Sequence[Batch]:
        seen.append(index)
        return own_tokens(index)

    def objective(model: Decoder, batch: Batch) -> Any:
        loss = CausalLM(run.compute_dtype, cross_entropy_over(world))(model, batch)
        bad = run.poisoned == (world.rank, seen[-1])
        return replace(loss, total=loss.total * float("nan")) if bad else loss

    listener = Listener()
    ema = Ema(model, run.ema) if run.ema else None
    trainer = Trainer(
        model,
        reading,
        objective,
        Optimiser(model, OptimiserConfig(run.optimiser, lr=0.01, weight_decay=run.weight_decay)),  # type: ignore[arg-type]
        make_schedule("wsd", steps=run.steps, warmup_steps=2),
        config=LoopConfig(
            run.steps,
            checkpoint_every_s=run.checkpoint_every_s,
            guard=GuardConfig(rollback_steps=4),
            verify_every=run.verify_every,
            inject=run.faults,
        ),
        workdir=folder / "work",
        observer=listener,
        monitor=ema,
        world=world,
    )
    result = trainer.run()
    if ema:
        ema.apply(model)
    log = [json.loads(line) for line in (folder / "work" / LOG_FILE).read_text().splitlines()]
    return Trained(log, whole_weights(model), result, listener.logs, listener.metrics)


def whole_weights(model: torch.nn.Module) -> dict[str, Any]:
    """All weights as arrays, the same on every rank."""
    return {name: whole(parameter.detach()).numpy().copy() for name, parameter in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
