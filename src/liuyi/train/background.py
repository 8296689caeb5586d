"""Threads that work beside training, and should take only the time that it leaves."""

from __future__ import annotations

import os
import sys
import threading

NICENESS = 15
"""Of such a thread, on top of the process's own."""


def yield_to_training() -> None:
    """Let the calling thread have the time that others leave; where threads have no priority, nothing happens."""
    if sys.platform == "linux":
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, usual + NICENESS))
