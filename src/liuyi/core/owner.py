"""Who holds something: a process named so that a stranger can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


def this_process() -> str:
    """The name of this process: `host:pid:starttime`. The start time tells a reused pid apart."""
    pid = os.getpid()
    return f"{_host()}:{pid}:{_start_time(pid)}"


def is_alive(owner: str) -> bool | None:
    """Whether the process of that name still runs; None where that cannot be known, as on another host.

    What follows the third colon is a label of the caller's own and is not looked at.
    """
    host, _, rest = owner.partition(":")
    pid, _, start = rest.partition(":")
    start = start.partition(":")[0]
    if host != _host() or not pid.isdigit() or not start:
        return None
    return _start_time(int(pid)) == start


@cache
def _host() -> str:
    return socket.gethostname().replace(":", "-")


def _start_time(pid: int) -> str:
    """Start of a living process in the system's own ticks; empty if there is none, or only a zombie."""
    if not Path("/proc/self/stat").exists():
        return _start_time_elsewhere(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _start_time_elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(int(process.create_time()))
    except psutil.NoSuchProcess:
        return ""
