"""The stream of a run's events: one JSON object a line, appended by the worker and the step, read by anyone.

    {"time": 1764000000.1, "event": "step", "step": "sft", "status": "running", "position": 3, "steps": 9}
    {"time": 1764000001.2, "event": "progress", "step": "sft", "done": 40, "total": 200, "shown": {"loss": 2.31}}
    {"time": 1764000009.3, "event": "run", "status": "done"}

What must not be lost is in the ledger; this is for watching.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from liuyi.core.disk import full_disk_is_told

FILE_NAME = "events.jsonl"
POLL_S = 0.1

Event = dict[str, Any]


class EventLog:
    """Appends events. Each is one write, so that several processes may append to the same file."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir
        with full_disk_is_told("writing events", run_dir):
            self._file = os.open(run_dir / FILE_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end_torn_line()

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event; figures that are not finite are written as null."""
        line = json.dumps({"time": round(time.time(), 3), "event": event} | _finite(fields), ensure_ascii=False)
        with full_disk_is_told("writing events", self._folder):
            os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)

    def _end_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return {key: _finite(each) for key, each in value.items()} if isinstance(value, dict) else value


def end_of_events(run_dir: Path) -> int:
    """Where the next event will be written, in bytes."""
    path = run_dir / FILE_NAME
    return path.stat().st_size if path.exists() else 0


def follow_events(run_dir: Path, *, start: int = 0, more: Callable[[], bool] = lambda: False) -> Iterator[Event | None]:
    """The events from byte `start` on; then, while `more()` holds, those that are still to come.

    Yields None whenever there is nothing new, so that the reader can look around. What was written before `more()`
    ceased to hold is still read.
    """
    path = run_dir / FILE_NAME
    rest = b""
    position = start
    last_round = False
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                fresh = file.read()
            position += len(fresh)
            *lines, rest = (rest + fresh).split(b"\n")
            yield from (event for line in lines if (event := _parse(line)) is not None)
        if last_round:
            return
        last_round = not more()
        if not last_round:
            yield None
            time.sleep(POLL_S)


def _parse(line: bytes) -> Event | None:
    """The event on a line; None for a line that a killed process left torn."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
