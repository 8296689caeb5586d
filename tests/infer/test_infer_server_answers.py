"""The record of answers: what cannot be recorded is told, and not once for each."""

from __future__ import annotations

import pytest

from liuyi.core.errors import OutOfDisk
from liuyi.infer.server.answers import Answer, AnswerLog


def test_answers_that_cannot_be_recorded_are_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    recorded: list[str] = []

    def record(answer: Answer) -> None:
        if answer.id.startswith("lost"):
            raise OutOfDisk("no space left for the ledger", where="ledger.db")
        recorded.append(answer.id)

    log = AnswerLog(record)
    for id in ("kept 1", "lost 1", "lost 2", "lost 3", "kept 2", "lost 4", "lost 5"):
        log.add(Answer(id, "d" * 64, None, "r" * 64, {}))
    log.close()
    assert recorded == ["kept 1", "kept 2"]
    assert [line.getMessage() for line in caplog.records] == [
        "the answer lost 1 could not be recorded: ledger.db: no space left for the ledger",
        "3 answers in a row were not recorded",
        "the answer lost 4 could not be recorded: ledger.db: no space left for the ledger",
        "2 answers in a row were not recorded",
    ]
    assert not any(line.exc_info for line in caplog.records)
