"""Who looks on while a model is trained: samples of its text, and exporters to other tools.

An onlooker takes no part: nothing that it does changes a bit of weights, optimiser, random numbers or log. One that
runs the model is there on all processes, in the same order, since a model that is cut up can only be run by all;
others the first process has alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Onlooker(Protocol):
    def after_step(self, model: Any, row: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Called after each step with its line of `training.jsonl` and the figures that are shown.

        A step that is taken again, after a rollback or a restart, is seen again.
        """

    def close(self, *, failed: bool) -> None:
        """The run is over, or this process's part of it."""


@contextmanager
def looking_on(onlookers: Sequence[Onlooker]) -> Iterator[None]:
    """Closes them when the block ends."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for onlooker in onlookers:
            onlooker.close(failed=failed)
