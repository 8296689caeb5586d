"""What keeps tests from hanging on the machine and on chance; imported before torch is.

A thread each: tests run beside each other on all cores, and threads of theirs that wait for one another by spinning
take these away from the rest. No waiting for the disk: a killed process loses nothing that it wrote, and no test cuts
the power. The same examples of properties each time, and no clock on them:

    pytest --hypothesis-profile=search    # others each time
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")


def _at_once(descriptor: int) -> None:
    """What `os.fsync` does here."""


os.fsync = _at_once

settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("steady"), derandomize=False, print_blob=True)
settings.load_profile("steady")
