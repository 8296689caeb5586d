"""The watchdog: a run that stands still is ended, the stacks of its threads in the log, so that it can start again.

It watches from a thread of its own. The process ends by the status `START_AGAIN`, upon which the runner starts the
step again from its last checkpoint; without a runner the status tells whoever waits.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from liuyi.core.step import START_AGAIN

TELL_S = 5.0
"""How long the log may take to note that the process ends: what stands still may be the disk that it is on."""


class Watchdog:
    """Ends the process when `beat` has not been called for `timeout_s`, for as long as the block lasts.

    `log` is told of it in one line; the stacks go to `stacks`.
    """

    def __init__(self, timeout_s: float, log: Callable[[str], None], stacks: TextIO = sys.__stderr__) -> None:  # type: ignore[assignment]
        self._timeout_s, self._log, self._stacks = timeout_s, log, stacks
        self._last, self._doing = time.monotonic(), "before the first step"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Say that the run is alive, and what it does next."""
        self._doing, self._last = doing, time.monotonic()

    @property
    def still_s(self) -> float:
        """How long nothing has moved."""
        return time.monotonic() - self._last

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout_s / 4)):
            if self.still_s > self._timeout_s:
                try:
                    faulthandler.dump_traceback(self._stacks, all_threads=True)
                    telling = threading.Thread(target=self._tell, name="last words", daemon=True)
                    telling.start()
                    telling.join(TELL_S)
                finally:
                    # Whatever cannot be written, on a full disk say: it ends.
                    os._exit(START_AGAIN)

    def _tell(self) -> None:
        self._log(
            f"{self._doing}: nothing has moved for {self._timeout_s:g} s; the stacks of all threads are in the log, "
            "and the process ends to start again"
        )
