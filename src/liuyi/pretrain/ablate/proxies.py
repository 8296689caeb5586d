"""Proxies: small models trained alike, one after another; each that is done is kept, and the one at work resumes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from liuyi.core.step import Context
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.ablate.difference import Floats
from liuyi.pretrain.ablate.heldout import Curve, HeldOut
from liuyi.pretrain.params import DecoderParams
from liuyi.pretrain.train import fresh_model, fresh_weights, make_trainer, rows_in_batch
from liuyi.train.checkpoint import fsync
from liuyi.train.data import Stream

_RESULT = "bits.safetensors"


@dataclass(frozen=True)
class Proxy:
    """One model to train: what on, and with which seed."""

    name: str
    """Unique, and fit for a folder's name."""
    open_stream: Callable[[], Stream]
    seed: int


@dataclass(frozen=True)
class Plan:
    """What all proxies have in common."""

    params: DecoderParams
    token_budget: int
    points: int
    """How often a proxy is measured, evenly over its steps, the last time at its end."""
    tokenizer: Tokenizer
    heldout: Sequence[HeldOut]


@dataclass(frozen=True)
class Measured:
    """What became of one proxy."""

    tokens: Floats
    """Tokens trained on at each point, `[points]`."""
    bits: list[Floats]
    """For each held-out set, bits of its documents at each point, `[points, documents]`."""


def train_proxies(
    ctx: Context, proxies: Sequence[Proxy], plan: Plan, *, before: int = 0, after: int = 0
) -> list[Measured]:
    """Train and measure every proxy that is not done yet; all results, in the order of `proxies`.

    `before` and `after` count the proxies of the same step that were or will be trained besides, for its progress.
    """
    results = []
    total = before + len(proxies) + after
    for number, proxy in enumerate(proxies, start=before):
        folder = ctx.workdir / "proxies" / proxy.name
        if not (folder / _RESULT).exists():
            started = time.monotonic()
            with _one_thread():
                _train(proxy, plan, folder, _Part(ctx, number, total))
            ctx.log(f"{number + 1} of {total}: {proxy.name} done in {time.monotonic() - started:.1f} s")
        ctx.progress(number + 1, total, "proxies")
        results.append(_read(folder, len(plan.heldout)))
    return results


def points_of(steps: int, points: int) -> list[int]:
    """The steps after which a proxy is measured: `points` of them at even distances, fewer if there are fewer steps."""
    return sorted({max(1, round(steps * point / points)) for point in range(1, points + 1)})


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one core: small products gain nothing from more, and sums come out the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(proxy: Proxy, plan: Plan, folder: Path, observer: _Part) -> None:
    stream = proxy.open_stream()
    model = fresh_model(plan.params, stream, plan.tokenizer)
    curve = Curve(plan.heldout, [], plan.params.seq_len)
    trainer = make_trainer(
        model,
        stream,
        plan.params,
        token_budget=plan.token_budget,
        seed=proxy.seed,
        workdir=folder,
        observer=observer,
        monitor=curve,
        prepare=lambda: fresh_weights(model, plan.params.init, stream, proxy.seed),
    )
    curve.at_steps = points_of(trainer.config.steps, plan.points)
    trainer.run()
    step_tokens = rows_in_batch(model, plan.params) * plan.params.seq_len
    _write(folder, np.array(curve.at_steps, dtype=np.float64) * step_tokens, curve)
    shutil.rmtree(folder / "checkpoints")


def _write(folder: Path, tokens: Floats, curve: Curve) -> None:
    temporary = folder / f"{_RESULT}.tmp"
    save_file({"tokens": tokens, **{name: bits.numpy() for name, bits in curve.tensors().items()}}, temporary)
    fsync(temporary)
    temporary.rename(folder / _RESULT)
    fsync(folder)


def _read(folder: Path, sets: int) -> Measured:
    found = load_file(folder / _RESULT)
    return Measured(found["tokens"], [found[str(at)] for at in range(sets)])


class _Part:
    """What the training of one proxy tells: its progress as a part of all, its warnings, and not its every loss."""

    def __init__(self, ctx: Context, number: int, total: int) -> None:
        self.ctx, self.number, self.total = ctx, number, total

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        self.ctx.progress(self.number + done / total, self.total, "proxies", **shown)

    def metric(self, name: str, value: float, index: int | None = None) -> None:
        """A thousand steps of twenty proxies say nothing in one curve."""

    def log(self, message: str) -> None:
        self.ctx.log(message)
