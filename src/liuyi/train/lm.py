"""The language-modelling objective, shared by pretraining and fine-tuning, and the choice of its compute dtype."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from liuyi.model.decoder import Decoder
from liuyi.model.loss import linear_cross_entropy
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.interfaces import Loss
from liuyi.train.world import World

ComputeDtype = Literal["auto", "fp32", "bf16"]
CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of hidden states [tokens, hidden], head [vocab, hidden] and targets [tokens], summed."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of every target in a packed batch; `compute_dtype` is that of the matrix products.

    A mixture of experts adds to each target's loss what keeps experts evenly loaded, taken over the micro-batch: how a
    batch is cut up changes that term a little, and no other.
    """

    uses_weights_once: ClassVar[bool] = True
    """A micro-batch goes through each matrix in one product."""
    compute_dtype: torch.dtype = torch.float32
    cross_entropy: CrossEntropy = linear_cross_entropy

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        hidden = model(
            batch.tokens, positions=batch.positions, segments=batch.segments, compute_dtype=self.compute_dtype
        )
        total = self.cross_entropy(hidden.flatten(0, 1), model.head_weight, batch.targets.flatten())
        count = int((batch.targets != IGNORE).sum())
        balance = model.balance_loss()
        if balance is None:
            return Loss(total, count, {})
        return Loss(total + count * balance, count, {"balance": count * balance.detach()})


DTYPE_FILE = "compute-dtype.json"
"""In a workdir: which dtype `auto` has come to."""
_TIMED_SIDE = 768
_TIMED_SIDE_ELSEWHERE = 4096
"""Rows and columns of the matrix that is timed. A GPU multiplies a small one in less than it takes to ask for it, and
both dtypes would seem to be as fast."""


def choose_compute_dtype(wanted: ComputeDtype, workdir: Path, world: World | None = None) -> torch.dtype:
    """The dtype to compute in; `auto` times a product in each, once per workdir, so that a resumed run agrees.

    Of several processes the first measures while the others wait.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    world = world or World()
    path = workdir / DTYPE_FILE
    if world.leads and not path.exists():
        _measure_dtypes(path, world.device)
    world.barrier()
    return _DTYPES[json.loads(path.read_text(encoding="utf-8"))["dtype"]]


def _measure_dtypes(path: Path, device: torch.device) -> None:
    """Time both and write the verdict to `path`."""
    side = _TIMED_SIDE if device.type == "cpu" else _TIMED_SIDE_ELSEWHERE
    matrices = {name: torch.ones(side, side, dtype=dtype, device=device) for name, dtype in _DTYPES.items()}
    # By turns and often enough that other work on the machine does not decide.
    rounds = [{name: _product_s(matrix) for name, matrix in matrices.items()} for _ in range(15)]
    seconds = {name: min(times[name] for times in rounds) for name in matrices}
    # bf16 costs conversions besides, so it has to win clearly.
    name = "bf16" if seconds["bf16"] < 0.7 * seconds["fp32"] else "fp32"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"dtype": name, "matmul_s": seconds}), encoding="utf-8")
    temporary.rename(path)


def _product_s(matrix: Tensor) -> float:
    """What a product of the matrix with itself takes, in seconds."""
    started = time.perf_counter()
    (matrix @ matrix)[0, 0].item()
    return time.perf_counter() - started
