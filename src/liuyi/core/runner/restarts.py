"""How often something that died is started again: only so often in a row without having kept anything new."""

from __future__ import annotations

import os
from pathlib import Path

MAX_STARTS = 3


class Restarts:
    """Counts the deaths of what keeps its progress in `folder`, by name; hidden folders are no progress."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_a_row = 0
        self._kept = self._found()

    def again(self) -> bool:
        """Whether to start once more, asked after each death."""
        known, self._kept = self._kept, self._found()
        self._in_a_row = 1 if self._kept != known else self._in_a_row + 1
        return self._in_a_row <= MAX_STARTS

    def _found(self) -> set[str]:
        found: set[str] = set()
        # Unlike `rglob` it passes over what is removed meanwhile.
        for folder, inside, files in os.walk(self._folder):
            inside[:] = [name for name in inside if not name.startswith(".")]
            found.update(f"{folder}/{name}" for name in [*inside, *files])
        return found
