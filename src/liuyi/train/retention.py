"""Which checkpoints stay: the newest, the milestones, and those that a rollback may go to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_NAME = re.compile(r"(\d{6,})-step(\d{9,})")


class Name(NamedTuple):
    """A checkpoint's name: its number in the order of making, and the step that it is the state before."""

    serial: int
    step: int

    def __str__(self) -> str:
        return f"{self.serial:06d}-step{self.step:09d}"

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """The name that a folder has; None for the folder of something else, or of a half-written one."""
        match = _NAME.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Retention:
    newest: int = 2
    """So many of the newest stay."""
    every_steps: int = 0
    """The state before each multiple of so many steps is made, and stays for good; 0 for none."""

    def is_milestone(self, step: int) -> bool:
        return bool(self.every_steps) and step % self.every_steps == 0

    def milestones(self, names: Iterable[Name]) -> list[Name]:
        """The milestones among `names`, by step; of several of one step, which a rollback can leave, the newest."""
        by_step = {name.step: name for name in sorted(names) if self.is_milestone(name.step)}
        return [by_step[step] for step in sorted(by_step)]

    def kept(self, names: Iterable[Name], anchors: Sequence[int] = ()) -> set[Name]:
        """Those of `names` that stay; for each step of `anchors` the newest one at or before it does."""
        order = sorted(names)
        kept = {*order[-self.newest :], *self.milestones(order)}
        for anchor in anchors:
            kept.update([name for name in order if name.step <= anchor][-1:])
        return kept
