"""Files as streams of bytes, unpacked on the way: gzip, Zstandard, xz and bzip2, by the name's last suffix."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, cast

from liuyi.data.sources.location import SourceFile
from liuyi.data.text import encoding_of

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged or truncated file raises."""

HEAD_BYTES = 65_536
_BUFFER_BYTES = 1 << 18
_IN_MEMORY_BYTES = 1 << 24


@dataclass(frozen=True)
class Opened:
    """An open file: its unpacked bytes, and the first of them (`HEAD_BYTES`, fewer only where the file is shorter)."""

    stream: io.BufferedReader
    head: bytes

    def encoding(self) -> str:
        """The encoding that the head shows. Raises DataError where it is not text."""
        return encoding_of(self.head, final=len(self.head) < HEAD_BYTES)


def suffixes(name: str) -> tuple[str, str]:
    """(suffix of the format, suffix of the compression or nothing), in lower case.

    >>> suffixes("a/b.JSONL.gz"), suffixes("README"), suffixes("notes.zst")
    (('.jsonl', '.gz'), ('', ''), ('', '.zst'))
    """
    path = PurePosixPath(name.lower())
    if path.suffix not in COMPRESSED:
        return path.suffix, ""
    return PurePosixPath(path.stem).suffix, path.suffix


@contextmanager
def opened(file: SourceFile) -> Iterator[Opened]:
    """Open a file for reading it once from its beginning. Raises one of `BROKEN` or DataError."""
    with ExitStack() as stack:
        raw = stack.enter_context(file.open())
        plain = stack.enter_context(_unpacked(raw, suffixes(file.name)[1]))
        head = _read_fully(plain, HEAD_BYTES)
        yield Opened(io.BufferedReader(_Joined(head, plain), _BUFFER_BYTES), head)


@contextmanager
def seekable(file: SourceFile) -> Iterator[IO[bytes]]:
    """Open a file for reading it in any order: a compressed one is first unpacked to disk."""
    packing = suffixes(file.name)[1]
    with file.open() as raw:
        if not packing:
            yield raw
            return
        with _unpacked(raw, packing) as plain, tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as copy:
            shutil.copyfileobj(plain, copy, _BUFFER_BYTES)
            copy.seek(0)
            yield cast(IO[bytes], copy)


def _unpacked(raw: BinaryIO, packing: str) -> IO[bytes]:
    if packing == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packing == ".bz2":
        return bz2.BZ2File(raw)
    if packing == ".xz":
        return lzma.LZMAFile(raw)
    if packing == ".zst":
        import pyarrow as pa

        return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))
    return raw


def _read_fully(stream: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Joined(io.RawIOBase):
    """What was read ahead, and then the rest."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part: Any = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer))
        self._head = self._head[len(part) :] if self._head else self._head
        buffer[: len(part)] = part
        return len(part)
