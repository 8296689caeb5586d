"""How many cores this process may use: those it may run on, and no more than its container is given.

A container with two CPUs of a host with 64 sees all 64. As many threads would wait for each other most of the time, for
the kernel stops all of them as soon as they have had their two CPUs' worth of each tenth of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
"""The environment variable by which PyTorch, NumPy and others are told their number of threads."""


def cores(root: Path = Path("/")) -> int:
    """Whole cores that this process may use, at least one. `root` is where `proc` and `sys` are."""
    allowed = _allowed()
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups of this process (both versions) are given at most; None if there is no limit."""
    return min(_quotas(root), default=None)


def limit_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep the libraries that this process has not yet loaded to `cores()` threads, unless somebody chose otherwise."""
    if cores() < _allowed():
        environment.setdefault(THREADS, str(cores()))


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    for group in _groups(root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            if quota != "max":
                yield int(quota) / int(period)
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of those around them, as far as they can be seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 lies at the mount itself or, beside version 1, in `unified`.
        for top in [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]:
            inner = top / path.lstrip("/")
            yield from (group for group in (inner, *inner.parents) if group.is_relative_to(top))
