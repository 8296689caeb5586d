"""Whoever imports this waits for no disk: a killed process loses nothing that it wrote, and tests cut no power.

Checkpoints are synced file by file; on a slow or busy disk that is most of what tests of training would wait for.
"""

from __future__ import annotations

import os


def _at_once(descriptor: int) -> None:
    """What `os.fsync` does here."""


os.fsync = _at_once
