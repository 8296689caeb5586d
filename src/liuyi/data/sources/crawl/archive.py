"""The archive of a crawl: WARC files, each record its own gzip member, that only ever grow.

Pages are written and flushed to disk before the frontier hears of them. What a kill leaves behind the end that the
frontier knows is read again: whole records count as fetched, a broken one is cut off.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liuyi import __version__

_LARGEST_FILE_BYTES = 1_000_000_000
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Exchange:
    """A request and its answer, as they went over the wire but for the framing of the body."""

    url: str
    address: str
    """The IP address that answered."""
    request: Headers
    status: int
    reason: str
    response: Headers
    body: bytes


@dataclass(frozen=True)
class Recovered:
    """A page found behind the known end of the archive; `record` is its WARC record, not yet read."""

    url: str
    record: Any
    file: str
    end: int


class Archive:
    """WARC files `crawl-00000.warc.gz`, `crawl-00001.warc.gz`, … in a folder."""

    def __init__(self, folder: Path, largest_file_bytes: int = _LARGEST_FILE_BYTES) -> None:
        self._folder = folder
        self._largest = largest_file_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def files(self) -> list[Path]:
        """The files in the order in which they were written."""
        return sorted(self._folder.glob("crawl-*.warc.gz"))

    def add(self, exchange: Exchange) -> tuple[str, int]:
        """Write a page and wait until it is on disk; gives (file, its length)."""
        path = self._current()
        members = [] if path.exists() else [self._warcinfo()]
        members += [_record(exchange, "request"), _record(exchange, "response")]
        with path.open("ab") as file:
            file.write(b"".join(members))
            file.flush()
            os.fsync(file.fileno())
            return path.name, file.tell()

    def recover(self, known_file: str, known_bytes: int) -> Iterator[Recovered]:
        """The pages behind the known end; what is broken behind the last of them is cut off."""
        for path in self.files():
            if path.name < known_file:
                continue
            end = known_bytes if path.name == known_file else 0
            with path.open("r+b") as file:
                file.seek(end)
                for record, size in _members(file.read()):
                    end += size
                    if str(record.record_type) == "response":
                        yield Recovered(record.headers["WARC-Target-URI"], record, path.name, end)
                file.truncate(end)
                os.fsync(file.fileno())

    def _current(self) -> Path:
        files = self.files()
        if not files:
            return self._folder / "crawl-00000.warc.gz"
        if files[-1].stat().st_size < self._largest:
            return files[-1]
        return self._folder / f"crawl-{len(files):05}.warc.gz"

    def _warcinfo(self) -> bytes:
        from fastwarc.warc import WarcRecord, WarcRecordType

        record = WarcRecord()
        record.init_headers(WarcRecordType.warcinfo)
        record.headers["Content-Type"] = "application/warc-fields"
        record.set_bytes_content(f"software: liuyi/{__version__}\r\nformat: WARC File Format 1.1\r\n".encode())
        return _packed(record)


def _record(exchange: Exchange, kind: str) -> bytes:
    from fastwarc.warc import WarcRecord, WarcRecordType

    if kind == "request":
        path = exchange.url.partition("://")[2].partition("/")[2]
        head, headers, body = f"GET /{path} HTTP/1.1", exchange.request, b""
    else:
        head, headers, body = f"HTTP/1.1 {exchange.status} {exchange.reason}", exchange.response, exchange.body
    record = WarcRecord()
    record.init_headers(getattr(WarcRecordType, kind))
    record.headers["WARC-Target-URI"] = exchange.url
    record.headers["WARC-IP-Address"] = exchange.address
    record.headers["Content-Type"] = f"application/http; msgtype={kind}"
    record.is_http = True
    lines = [head.encode("latin-1", "replace"), *(name + b": " + value for name, value in headers)]
    record.set_bytes_content(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    return _packed(record)


def _packed(record: Any) -> bytes:
    sink = io.BytesIO()
    record.write(sink, checksum_data=True)
    return gzip.compress(sink.getvalue(), mtime=0)


def _members(data: bytes) -> Iterator[tuple[Any, int]]:
    """(record, bytes it takes) of each whole gzip member from the beginning on."""
    from fastwarc.warc import ArchiveIterator

    while data:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            plain = unpacker.decompress(data)
        except zlib.error:
            return
        if not unpacker.eof:
            return
        size = len(data) - len(unpacker.unused_data)
        yield next(iter(ArchiveIterator(io.BytesIO(plain), auto_decode="all"))), size
        data = unpacker.unused_data
