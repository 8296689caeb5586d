"""Rows of a JSON file as a stream: the elements of one array, or objects one after the other, never held together."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from liuyi.data.sources.rows import longer_than
from liuyi.data.sources.stream import Opened

JsonRow = tuple[int, int, dict[str, Any] | str]
"""(line on which the row begins, number of the row, the row or what is wrong with it)."""

_CHUNK_CHARS = 1 << 18
_SPACE = re.compile(r"[\s,]*")
_LONGEST_LITERAL = 16
_DECODER = json.JSONDecoder()


def read_json(file: Opened, longest: int) -> Iterator[JsonRow]:
    """Each object of a JSON file. After a row that is not JSON, reading goes on at the next line that begins an object
    with the same indentation; where there is none, the row says that nothing after it was read.

    No more than about `longest` characters are held, or twice a row.
    """
    encoding = file.encoding()
    if encoding == "cp1252":
        encoding = "utf-8"
    reader = _Reader(io.TextIOWrapper(file.stream, encoding, errors="replace", newline="\n"), longest)
    reader.skip(_SPACE)
    if reader.peek() == "[":
        reader.take(1)
    number = 0
    indent = ""
    while True:
        reader.skip(_SPACE)
        if reader.peek() in ("", "]"):
            return
        number += 1
        if number == 1:
            indent = reader.indent()
        line = reader.line
        try:
            yield line, number, reader.value()
        except _NotJson as error:
            found = reader.resume(indent)
            yield line, number, f"{error}" if found else f"{error}; nothing after it was read"
            if not found:
                return


class _NotJson(Exception):
    """Why what stands here is no object."""


class _Reader:
    """A window on the text: `_text[_at:]` is read ahead, `line` is where it begins."""

    def __init__(self, source: io.TextIOWrapper, longest: int) -> None:
        self._source, self._longest = source, longest
        self._text, self._at, self._ended = "", 0, False
        self._before = ""
        self.line = 1

    def peek(self) -> str:
        if self._at == len(self._text):
            self._more()
        return self._text[self._at : self._at + 1]

    def take(self, count: int) -> None:
        end = self._at + count
        self.line += self._text.count("\n", self._at, end)
        self._before = (self._before + self._text[self._at : end]).rpartition("\n")[2][-_LONGEST_LITERAL:]
        self._at = end

    def skip(self, pattern: re.Pattern[str]) -> None:
        while self.peek():
            end = self._match_end(pattern)
            self.take(end - self._at)
            if end < len(self._text):
                return

    def indent(self) -> str:
        return self._before if self._before.isspace() else ""

    def value(self) -> dict[str, Any] | str:
        """The object here, or what it is instead. Raises _NotJson."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise _NotJson("not JSON: nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_LITERAL
                if self._ended or not cut:
                    raise _NotJson(f"not JSON: {error.msg}") from None
            else:
                if end < len(self._text) or self._ended:
                    self.take(end - self._at)
                    return value if isinstance(value, dict) else "not a JSON object"
            if len(self._text) - self._at > self._longest:
                raise _NotJson(longer_than(self._longest))
            self._more()

    def resume(self, indent: str) -> bool:
        """Go to the next line that begins an object with this indentation."""
        start = re.compile(rf"\n(?={re.escape(indent)}\{{)")
        while True:
            found = start.search(self._text, self._at + 1)
            if found:
                self.take(found.end() - self._at)
                return True
            if self._ended:
                return False
            self.take(max(len(self._text) - self._at - 2 * _LONGEST_LITERAL, 0))
            self._more()

    def _match_end(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._text, self._at)
        return found.end() if found else self._at

    def _more(self) -> None:
        kept = self._text[self._at :]
        read = self._source.read(max(_CHUNK_CHARS, len(kept)))
        self._ended = not read
        self._text, self._at = kept + read, 0
