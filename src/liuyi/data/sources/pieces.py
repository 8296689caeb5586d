"""A text file as pieces of bounded size: most files are one, a long one is divided where a paragraph ends."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from liuyi.core.errors import DataError
from liuyi.data.sources.rows import longer_than
from liuyi.data.sources.stream import Opened

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read_pieces(file: Opened, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """(line on which it begins, bytes of the line before it, bytes) of each piece; the line is 0 where the file is one.

    A piece has at most `longest` bytes. It ends with an empty line if there is one in its second half, else with a
    line, else anywhere. Raises DataError for a longer file in UTF-16 or UTF-32, which has no such bytes.
    """
    kept, line, column = b"", 1, 0
    divided = False
    while True:
        read = file.stream.read(longest + 1 - len(kept))
        data = kept + read
        if len(data) <= longest:
            if data or not divided:
                yield line if divided else 0, column, data
            return
        if not divided and data.startswith(_WIDE_MARKS):
            raise DataError(f"{longer_than(longest)} and in UTF-16 or UTF-32; files in UTF-8 are divided")
        end = _end_of_piece(data, longest)
        yield line, column, data[:end]
        divided = True
        line += data.count(b"\n", 0, end)
        last = data.rfind(b"\n", 0, end)
        column = end - last - 1 if last >= 0 else column + end
        kept = data[end:]


def _end_of_piece(data: bytes, longest: int) -> int:
    for mark in (b"\n\n", b"\r\n\r\n", b"\n"):
        found = data.rfind(mark, longest // 2, longest)
        if found >= 0:
            return found + len(mark)
    return _between_characters(data, longest)


def _between_characters(data: bytes, end: int) -> int:
    """The end, moved back before a UTF-8 character that it would cut."""
    for back in range(4):
        if data[end - back] & 0xC0 != 0x80:
            return end - back
    return end
