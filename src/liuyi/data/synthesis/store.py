"""Answers on disk: one line of JSON each, appended, and synchronised in groups before they count.

A killed process leaves at most one torn line, which is cut off when the file is opened again. What is not on disk was
never counted, and is asked again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liuyi.data.synthesis.ask import Answer


class AnswerStore:
    """Answers by the key of their request."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._lines: dict[str, tuple[int, int]] = {}
        self.answers = 0
        """Answers taken, those on their way to the disk among them."""
        self.requests = 0
        """Requests that the answers took, failed tries included."""
        self.tokens_out = 0
        self._end = self._recover()
        self._waiting: list[tuple[str, bytes]] = []
        self._writer: asyncio.Task[None] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if it is there."""
        place = self._lines.get(key)
        if place is None:
            return None
        line = json.loads(os.pread(self._file, place[1], place[0]))
        return Answer(**{name: line[name] for name in ("text", "finish", "model", "tokens_in", "tokens_out")})

    def add(self, key: str, answer: Answer, *, tries: int, tokens_out: int) -> None:
        """Append an answer; it is there once it is on disk. All that come during one synchronisation share the next.

        `tokens_out` is what it cost: an endpoint that counts no tokens is charged the most it could have written.
        Raises OSError where what came before could not be written.
        """
        line = {"key": key, **asdict(answer), "tries": tries, "cost": tokens_out}
        self._waiting.append((key, json.dumps(line, ensure_ascii=False).encode() + b"\n"))
        self.answers += 1
        self.requests += tries
        self.tokens_out += tokens_out
        if self._writer is None or self._writer.done():
            self._raise()
            self._writer = asyncio.create_task(self._write())

    async def flush(self) -> None:
        """Wait until everything is on disk. Raises OSError where it could not be written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
            self._raise()

    def close(self) -> None:
        os.close(self._file)

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            await asyncio.to_thread(self._append, b"".join(data for _, data in group))
            for key, data in group:
                self._lines[key] = (self._end, len(data))
                self._end += len(data)

    def _raise(self) -> None:
        """Raise what the writer has failed with, once."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.result()

    def _append(self, data: bytes) -> None:
        at = self._end
        while data:
            written = os.pwrite(self._file, data, at)
            at, data = at + written, data[written:]
        os.fsync(self._file)

    def _recover(self) -> int:
        """Index what is there and cut off what was not written to its end; gives the length of what stays."""
        end = 0
        for line, data in self._read():
            self._lines[line["key"]] = (end, len(data))
            self.answers += 1
            self.requests += line["tries"]
            self.tokens_out += line["cost"]
            end += len(data)
        os.ftruncate(self._file, end)
        return end

    def _read(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        with open(self._file, "rb", closefd=False) as file:
            for data in file:
                try:
                    yield json.loads(data if data.endswith(b"\n") else b""), data
                except ValueError:
                    return
