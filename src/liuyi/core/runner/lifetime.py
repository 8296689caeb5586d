"""Processes that live no longer than they should, and say that they are alive while they do."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OOM_COUNTERS = (
    Path("/proc/vmstat"),
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent`, which started it, ends in any way.

    Elsewhere than on Linux there is no such promise, and nothing is done.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the promise was made
        os.kill(os.getpid(), signal.SIGKILL)


class Heartbeat:
    """Calls `beat` every `interval_s`, from a thread of its own, for as long as the block lasts.

    A beat that fails is told on standard error, and the next is tried all the same.
    """

    def __init__(self, beat: Callable[[], None], interval_s: float) -> None:
        self._beat, self._interval_s = beat, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._beat()
            except Exception as error:
                print(f"heartbeat: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as this process can see."""
    counts = [0]
    for path in _OOM_COUNTERS:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts += [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return max(counts)
