"""Daft, the data engine: its native runner on all cores of this machine, quiet, and telling nobody."""

from __future__ import annotations

import os
from types import ModuleType


def engine() -> ModuleType:
    """The `daft` module, with telemetry and its own progress bars off."""
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ["DAFT_PROGRESS_BAR"] = "0"
    import daft

    return daft
