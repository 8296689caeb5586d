"""The record of answers: which model and application gave each, written beside the serving, never in its way."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from liuyi.core.errors import LiuyiError

logger = logging.getLogger("liuyi.server")


@dataclass(frozen=True)
class Answer:
    """What lineage keeps of one answer; neither prompt nor text."""

    id: str
    model_digest: str
    app_digest: str | None
    request_digest: str
    """SHA-256 of the request's canonical JSON."""
    detail: Mapping[str, Any]


class AnswerLog:
    """Hands answers to `record` in a thread of its own.

    A record that fails does no other harm: the first of several in a row is logged, and in the end how many they were.
    """

    def __init__(self, record: Callable[[Answer], None]) -> None:
        self._record = record
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="liuyi-answers", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Record an answer soon."""
        self._answers.put(answer)

    def close(self) -> None:
        """Wait until all answers are recorded."""
        self._answers.put(None)
        self._thread.join()

    def _work(self) -> None:
        missing = 0
        while (answer := self._answers.get()) is not None:
            try:
                self._record(answer)
            except Exception as error:
                missing += 1
                if missing == 1:
                    told = isinstance(error, LiuyiError)
                    logger.error(
                        "the answer %s could not be recorded: %s", answer.id, error, exc_info=None if told else error
                    )
            else:
                missing = self._tell(missing)
        self._tell(missing)

    def _tell(self, missing: int) -> int:
        if missing:
            logger.error("%d answers in a row were not recorded", missing)
        return 0
