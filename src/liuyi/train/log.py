"""`training.jsonl`: a line of figures for each step, the same bytes however often the run was killed.

What is not finite is `null`, and a step that was skipped says so in `skipped`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from liuyi.core.disk import full_disk_is_told

LOG_FILE = "training.jsonl"


class TrainingLog:
    """The log in a workdir, written by the process that leads."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / LOG_FILE

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def begin(self) -> None:
        """Begin anew."""
        self.path.write_bytes(b"")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a step's line. Raises OutOfDisk where there is no room for it."""
        values = {name: None if _is_not_finite(value) else value for name, value in row.items()}
        with (
            full_disk_is_told("writing what training measures", self.path.parent),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(values) + "\n")

    def cut(self, size_bytes: int) -> None:
        """Forget what came after the first `size_bytes`."""
        os.truncate(self.path, size_bytes)

    def replace(self, folder: Path) -> None:
        """Go on from the log that a checkpoint's folder holds."""
        shutil.copyfile(folder / LOG_FILE, self.path)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log in `folder`; none where there is no such file, and not the line that is being written."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("}\n")]


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
