"""Faults on purpose: `nan@120,kill:1@300,hang@500,slow:1@700,flip@900` makes a run meet each of them at that step.

| fault | what happens | who must notice |
|---|---|---|
| `nan@N` | the loss of batch N is not a number, whenever it is read | the guard: it skips the step |
| `spike@N` | the loss of batch N is a hundred times what it is | the guard |
| `kill@N` | the process is killed before step N (SIGKILL) | whoever started it: it is started again |
| `hang@N` | nothing moves any more before step N | the watchdog |
| `slow@N` | from step N on, computing takes twice as long | the report of stragglers |
| `flip@N` | one bit of one weight changes after step N | the check of weights at rest |

Where several processes train, `kill:1@300` is for rank 1 alone; what names no rank is for rank 0. Of a bad batch it is
that rank's share that is bad. Bad batches belong to the data and come back when the batch does; the other faults belong
to the machine and happen once, however often the step is taken again, but for slowness, which stays.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from liuyi.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["nan", "spike", "kill", "hang", "slow", "flip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HAPPENED = "injected.txt"

_FAULT = re.compile(rf"({'|'.join(KINDS)})(?::(\d+))?@(\d+)")
_FACTORS = {"nan": float("nan"), "spike": 100.0}
_FLIPPED_BIT = 22
"""Of a float32: the highest of the mantissa, half of the weight's size."""


@dataclass(frozen=True)
class Fault:
    kind: Kind
    step: int
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.rank}@{self.step}"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a text such as `nan@120,kill:1@300` names. Raises DataError for anything else."""
    faults = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _FAULT.fullmatch(part)
        if not found:
            raise DataError(
                f"'{part}' is no fault",
                hint=f"write KIND@STEP or KIND:RANK@STEP, such as kill:1@300; the kinds are {', '.join(KINDS)}",
            )
        faults.append(Fault(found[1], int(found[3]), int(found[2] or 0)))  # type: ignore[arg-type]
    return tuple(faults)


@dataclass
class Injector:
    """Brings the faults of one rank about. What happened once is remembered in `workdir`, on disk before it happens."""

    faults: tuple[Fault, ...] = ()
    workdir: Path = field(default_factory=Path)
    rank: int = 0

    def __post_init__(self) -> None:
        self.faults = tuple(fault for fault in self.faults if fault.rank == self.rank)

    def loss_factor(self, batch_index: int) -> float:
        """What the loss of this rank's share of a global batch is multiplied by."""
        factor = 1.0
        for fault in self.faults:
            if fault.step == batch_index:
                factor *= _FACTORS.get(fault.kind, 1.0)
        return factor

    def before_step(self, step: int) -> None:
        """Die or hang, if that is what this step is to meet."""
        if self._comes("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._comes("hang", step):
            while True:
                time.sleep(60)

    def slow_down(self, step: int, seconds: float) -> None:
        """Idle for as long as computing took, if this rank is slow by now."""
        if any(fault.kind == "slow" and fault.step <= step for fault in self.faults):
            time.sleep(seconds)

    def after_step(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Flip a bit in the middle of the first weight, if that is what this step is to meet."""
        if self._comes("flip", step):
            import torch  # Not above: parameters are read by commands that have no need of it.

            weight = next(iter(weights.values())).detach().view(-1)
            words = weight.view(torch.int32)
            words[len(words) // 2] ^= 1 << _FLIPPED_BIT

    def _comes(self, kind: Kind, step: int) -> bool:
        fault = Fault(kind, step, self.rank)
        if fault not in self.faults:
            return False
        path = self.workdir / HAPPENED
        if path.exists() and str(fault) in path.read_text(encoding="utf-8").split():
            return False
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{fault}\n")
            file.flush()
            os.fsync(file.fileno())
        return True
