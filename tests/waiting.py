"""Waiting for what other processes do, and reading what they wrote down."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(what: Callable[[], object], timeout_s: float = 240.0, pause_s: float = 0.02) -> None:
    """Return as soon as `what` is true; a test fails that waits in vain."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)


def lines(diary: Path, beginning: str) -> list[str]:
    """The lines of a diary that begin so; none where there is no diary yet."""
    text = diary.read_text() if diary.exists() else ""
    return [line for line in text.splitlines() if line.startswith(beginning)]


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
