"""Files that must survive: flushed to the disk, and a full disk reported as what it is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liuyi.core.errors import OutOfDisk

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_is_told(doing: str, folder: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into OutOfDisk, saying what was being done and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutOfDisk(f"no space left while {doing}", where=str(folder), hint=_room(folder)) from error


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _room(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return f"{free / 1e6:,.0f} MB are free there; 'liuyi gc' removes what no run needs"
