"""One proxy: a small model trained on one choice of data and measured on the way; what is done is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from liuyi.core.disk import sync
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.ablate.difference import Floats
from liuyi.pretrain.ablate.heldout import Curve, HeldOut
from liuyi.pretrain.params import DecoderParams
from liuyi.pretrain.train import fresh_model, fresh_weights, make_trainer, rows_in_batch
from liuyi.train.data import Stream
from liuyi.train.interfaces import Observer
from liuyi.train.loop import CHECKPOINTS

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

    @classmethod
    def load(cls, folder: Path) -> Measured:
        """What `train_proxy` left in `folder`."""
        found = load_file(folder / _RESULT)
        return cls(found["tokens"], [found[str(at)] for at in range(len(found) - 1)])


def is_done(folder: Path) -> bool:
    """Whether a proxy was trained and measured to its end in `folder`."""
    return (folder / _RESULT).exists()


def points_of(steps: int, points: int) -> list[int]:
    """The steps after which a proxy is measured: `points` of them at even distances, fewer if there are fewer steps."""
    return sorted({max(1, round(steps * point / points)) for point in range(1, points + 1)})


def train_proxy(proxy: Proxy, plan: Plan, folder: Path, observer: Observer) -> None:
    """Train and measure one proxy in `folder`, or go on with it there.

    On one core: small products gain nothing from more, and sums come out the same on any number of cores.
    """
    with _one_thread():
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
        shutil.rmtree(folder / CHECKPOINTS)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(folder: Path, tokens: Floats, curve: Curve) -> None:
    temporary = folder / f"{_RESULT}.tmp"
    save_file({"tokens": tokens, **{name: bits.numpy() for name, bits in curve.tensors().items()}}, temporary)
    sync(temporary)
    temporary.rename(folder / _RESULT)
    sync(folder)
