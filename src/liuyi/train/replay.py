"""Recorded steps taken again, from a milestone, and compared with the log: the check for corruption after the fact.

    found = replay(home, "last", "base", 1200)
    found.parts_at       # the first step that came out differently; None if all are the same

A step is a function of the state before it, the seed and its number, so on the same hardware, with as many threads, its
loss and its gradient's norm come out the same to the bit. Where they do not, either of the two times was wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, LedgerError, did_you_mean
from liuyi.core.home import Home
from liuyi.core.records import Execution
from liuyi.core.runner.keys import derived_seed, device_class
from liuyi.core.step import Staging, get_step
from liuyi.train.corruption import agree
from liuyi.train.inject import parse_faults
from liuyi.train.log import read_log
from liuyi.train.milestones import last_milestone, milestone_steps, plant

COMPARED = ("batch", "loss", "grad_norm")
ELSEWHERE = (
    *("processes", "shard", "tensor", "context", "nodes", "rendezvous"),
    *("samples_every", "sample_prompts", "sample_tokens", "export", "checkpoint_url"),
)
"""Params that say by whom a step is taken, and who looks on; those of a replay are the defaults."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Replay:
    """What the log says of some steps, and what came of taking them again."""

    recorded: tuple[Row, ...]
    again: tuple[Row, ...]
    exactly: bool
    """Whether they must be the same to the bit: in one process on a CPU, both times."""

    @property
    def parts_at(self) -> int | None:
        """The first step that came out differently; None if none did."""
        for recorded, again in zip(self.recorded, self.again, strict=True):
            if not all(_same(recorded[name], again[name], self.exactly) for name in COMPARED):
                return int(recorded["step"])
        return None


def replay(home: Home, run: str, name: str, step: int) -> Replay:
    """Take the steps of a finished training from the last milestone before step `step` to that one again.

    Raises LedgerError where run, step or milestones are not there, DataError for a step that the log does not have.
    """
    execution = _execution(home, run, name)
    if "milestones" not in execution.outputs:
        raise LedgerError(
            f"step '{name}' has no milestones to replay from", hint="set keep_every_steps before it is run"
        )
    milestones = home.store.open(execution.outputs["milestones"]).path
    recorded = read_log(milestones)
    wanted = {row["step"]: number for number, row in enumerate(recorded)}
    if step not in wanted:
        raise DataError(f"the training has no step {step}", hint=f"its steps are 0 to {max(wanted, default=0)}")
    first = wanted[last_milestone(milestones, step)]
    home.work_root.mkdir(parents=True, exist_ok=True)
    # In the home, where milestones are linked rather than copied.
    with tempfile.TemporaryDirectory(prefix="replay-", dir=home.work_root) as folder:
        workdir = Path(folder)
        plant(milestones, [at for at in milestone_steps(milestones) if at <= step], workdir)
        again = _take(home, execution, name, workdir, recorded[wanted[step]])
    exactly = execution.device == device_class() == "cpu" and execution.params.get("processes", 1) == 1
    return Replay(tuple(recorded[first : wanted[step] + 1]), tuple(again[first : wanted[step] + 1]), exactly)


def _execution(home: Home, run: str, name: str) -> Execution:
    found = home.ledger.run(run)
    steps = {step.name: step for step in home.ledger.steps(found.id)}
    if name not in steps:
        raise LedgerError(f"run {found.id} has no step '{name}'", hint=did_you_mean(name, steps))
    execution = home.ledger.execution(steps[name].key)
    if execution is None:
        raise LedgerError(f"step '{name}' of run {found.id} is {steps[name].status} and has given nothing yet")
    return execution


def _take(home: Home, execution: Execution, name: str, workdir: Path, last: Row) -> Sequence[Row]:
    step = get_step(execution.step)
    # What belongs to the data is met again; what belonged to the machine, and who looked on, is not.
    faults = [str(fault) for fault in parse_faults(execution.params["inject"]) if fault.kind in ("nan", "spike")]
    told = {key: value for key, value in execution.params.items() if key not in ELSEWHERE}
    quiet = {"checkpoint_every_s": 1e9, "keep_every_steps": 0, "inject": ",".join(faults)}
    params = step.params.model_validate({**told, **quiet})
    context = _Replaying(home, execution, name, derived_seed(execution.seed, step), workdir, last)
    with suppress(_Seen):
        step.run(context, params)
    return read_log(workdir)


def _same(recorded: Any, again: Any, exactly: bool) -> bool:
    if exactly or not isinstance(recorded, float) or not isinstance(again, float):
        return bool(recorded == again)
    return agree(recorded, again, exactly=False)


class _Seen(Exception):
    """The last step that was asked for has been taken."""


class _Replaying:
    """The `Context` of a step that is stopped at a row of its log and publishes nothing."""

    def __init__(self, home: Home, execution: Execution, name: str, seed: int, workdir: Path, last: Row) -> None:
        self._home, self._inputs = home, execution.inputs
        self.workdir, self.seed, self.name, self.run_id = workdir, seed, name, "replay"
        self.step = get_step(execution.step)
        self._last = last["step"], last["batch"]

    def input(self, name: str) -> Artifact:
        (found,) = self.inputs(name)
        return found

    def inputs(self, name: str) -> list[Artifact]:
        return [self._home.store.open(digest) for port, digest in self._inputs if port == name]

    def has(self, name: str) -> bool:
        return any(port == name for port, _ in self._inputs)

    @contextmanager
    def output(self, name: str) -> Iterator[Staging]:
        raise _Seen
        yield

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        taken = unit == "steps" and done > self._last[0]
        # A run that will roll back takes the step on another batch first.
        if taken and any((row["step"], row["batch"]) == self._last for row in read_log(self.workdir)):
            raise _Seen

    def metric(self, name: str, value: float, index: int | None = None) -> None: ...

    def log(self, message: str) -> None: ...
