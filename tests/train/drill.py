"""A small run to be killed: `start` has a process of its own train or resume it, and `printed` gives its digest.

Batches 40 to 42 are poisoned, so that the run also has a rollback to get right.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from train_support import Listener, random_documents, tiny_model, write_tokens

from liuyi.model.decoder import Decoder
from liuyi.train.batches import Batch, ShuffledBatches
from liuyi.train.data import TokenRows, TokenStream
from liuyi.train.guards import GuardConfig
from liuyi.train.interfaces import LoopConfig, Loss, Monitor, Result
from liuyi.train.lm import CausalLM
from liuyi.train.loop import Trainer
from liuyi.train.onlookers import Onlooker
from liuyi.train.optim import Optimiser, OptimiserConfig
from liuyi.train.schedule import make_schedule
from ranks import PRELOADED


class Poison:
    """Batches and objective of a language model; the loss of the batches in `poisoned` is multiplied by `factor`."""

    def __init__(self, batches: ShuffledBatches[Batch], poisoned: Sequence[int], factor: float = float("nan")) -> None:
        self.inner, self.poisoned, self.factor = batches, poisoned, factor
        self.seen: list[int] = []
        self.objective = CausalLM()

    def batches(self, index: int) -> Sequence[Batch]:
        self.seen.append(index)
        return self.inner(index)

    def loss(self, model: Decoder, batch: Batch) -> Loss:
        loss = self.objective(model, batch)
        if self.seen[-1] in self.poisoned:
            return Loss(loss.total * self.factor, loss.count, loss.metrics)
        return loss


def small_run(
    folder: Path,
    *,
    steps: int = 60,
    optimiser: str = "muon",
    micro_rows: int | None = 2,
    batch_rows: int = 4,
    poisoned: Sequence[int] = (),
    factor: float = float("nan"),
    every_s: float = 0.0,
    listener: Listener | None = None,
    monitor: Monitor | None = None,
    onlookers: Sequence[Onlooker] = (),
    guard: GuardConfig | None = None,
    model: Decoder | None = None,
    prepare: Callable[[], None] = lambda: None,
    config: LoopConfig | None = None,
) -> tuple[Decoder, Result, Poison]:
    """Train a tiny model in `folder`, or go on with it."""
    torch.set_num_threads(1)
    if not (folder / "tokens.json").exists():
        write_tokens(folder, random_documents(60))
    model = model or tiny_model()
    rows = TokenRows(TokenStream(folder), 32)
    poison = Poison(ShuffledBatches(rows, batch_rows=batch_rows, seed=5, micro_rows=micro_rows), poisoned, factor)
    trainer = Trainer(
        model,
        poison.batches,
        poison.loss,
        Optimiser(model, OptimiserConfig(optimiser, lr=0.01)),  # type: ignore[arg-type]
        make_schedule("wsd", steps=steps, warmup_steps=5),
        config=config or LoopConfig(steps, checkpoint_every_s=every_s, guard=guard or GuardConfig(rollback_steps=10)),
        workdir=folder / "work",
        observer=listener or Listener(),
        monitor=monitor,
        onlookers=onlookers,
        prepare=prepare,
    )
    return model, trainer.run(), poison


def digest(model: Decoder) -> str:
    """SHA-256 of all weights."""
    sha = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def start(folder: Path, optimiser: str, faults: str = "") -> BaseProcess:
    """A process that trains in `folder`, forked from one that has torch loaded, so that it begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_drill, args=(folder, optimiser, faults))
    process.start()
    return process


def printed(folder: Path) -> str:
    """What the last process in `folder` printed: the digest of the weights, if it came to the end."""
    return (folder / "printed.txt").read_text()


def _drill(folder: Path, optimiser: str, faults: str) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "printed.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    config = LoopConfig(
        100,
        checkpoint_every_s=0.02,
        guard=GuardConfig(rollback_steps=10),
        # What is not to hang is not to be ended either, however busy the machine.
        hang_timeout_s=6.0 if "hang" in faults else 60.0,
        verify_every=20,
        inject=faults,
    )
    model, result, _ = small_run(folder, steps=100, optimiser=optimiser, poisoned=(40, 41, 42), config=config)
    assert len(result.jumps) == 1, result
    print(digest(model), flush=True)
