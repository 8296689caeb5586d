"""Milestones: states of a run, weights, optimiser and all, that outlive it.

    milestones/
      step000000500/      a checkpoint as `train/stored.py` has it: the state before step 500
      training.jsonl      the log of the whole run
      compute-dtype.json  what `compute_dtype: auto` has come to, where it was asked for

Steps are taken again from them (`train/replay.py`), and other runs branch off from them. What is in them depends
neither on when other checkpoints were made nor on how often the run was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from liuyi.core.disk import sync_tree
from liuyi.core.errors import DataError
from liuyi.core.step import Context
from liuyi.train.lm import DTYPE_FILE
from liuyi.train.log import LOG_FILE
from liuyi.train.loop import CHECKPOINTS
from liuyi.train.params import KeepParams
from liuyi.train.retention import Name, Retention


def publish_milestones(ctx: Context, params: KeepParams) -> None:
    """Write the output `milestones` of a step whose training has ended, if its params ask for it."""
    if not params.keep_every_steps:
        return
    folder = ctx.workdir / CHECKPOINTS
    names = [name for path in folder.iterdir() if (name := Name.parse(path.name))]
    kept = Retention(every_steps=params.keep_every_steps).milestones(names)
    with ctx.output("milestones") as out:
        for name in kept:
            shutil.copytree(folder / str(name), out.path / _folder(name.step), copy_function=_link_or_copy)
        shutil.copy(ctx.workdir / LOG_FILE, out.path / LOG_FILE)
        if (ctx.workdir / DTYPE_FILE).exists():
            dtype = json.loads((ctx.workdir / DTYPE_FILE).read_text(encoding="utf-8"))["dtype"]
            (out.path / DTYPE_FILE).write_text(json.dumps({"dtype": dtype}), encoding="utf-8")
        out.metrics["milestones"] = len(kept)


def milestone_steps(milestones: Path) -> list[int]:
    """The steps that a folder of milestones has the states before, in their order."""
    return sorted(int(path.name.removeprefix("step")) for path in milestones.glob("step*"))


def milestone(milestones: Path, step: int) -> Path:
    """The folder of one milestone. Raises DataError if there is none of that step."""
    steps = milestone_steps(milestones)
    if step not in steps:
        raise DataError(f"there is no milestone of step {step}", hint=f"there are {_listed(steps)}")
    return milestones / _folder(step)


def last_milestone(milestones: Path, at_most: int | None = None) -> int:
    """The step of the last milestone, at or before step `at_most` if that is given. Raises DataError if none is."""
    steps = milestone_steps(milestones)
    found = [step for step in steps if at_most is None or step <= at_most]
    if not found:
        before = "" if at_most is None else f" at or before step {at_most}"
        raise DataError(f"there is no milestone{before}", hint=f"there are {_listed(steps)}")
    return found[-1]


def plant(milestones: Path, steps: Sequence[int], workdir: Path) -> None:
    """Have a run in `workdir` go on from the last of some milestones, unless it has a checkpoint already.

    It may roll back to those before. Raises DataError if there is no milestone of a step.
    """
    sources = [milestone(milestones, step) for step in sorted(steps)]
    folder = workdir / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    if any(Name.parse(path.name) for path in folder.iterdir()):
        return
    if (milestones / DTYPE_FILE).exists():
        shutil.copyfile(milestones / DTYPE_FILE, workdir / DTYPE_FILE)
    temporary = folder / "tmp-milestone"
    # The last one comes first: a run that is killed in between has the one it needs.
    for serial, (step, source) in reversed(list(enumerate(zip(sorted(steps), sources, strict=True)))):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
        sync_tree(temporary)
        temporary.rename(folder / str(Name(serial, step)))


def _folder(step: int) -> str:
    return f"step{step:09d}"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none: the run came by no multiple of its keep_every_steps"


def _link_or_copy(source: str, target: str) -> None:
    """A second name for the same bytes where the file system has such: nobody writes to them any more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
