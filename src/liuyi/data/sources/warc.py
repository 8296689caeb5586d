"""Web archives (WARC, plain or gzip): each answered request as a page still to be extracted, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from liuyi.core.errors import DataError
from liuyi.data.sources.rows import longer_than

_HTML = ("text/html", "application/xhtml+xml")
_KINDS = {"text/plain": ".txt", "text/markdown": ".md", "application/pdf": ".pdf"} | dict.fromkeys(_HTML, ".html")
_PAGES = frozenset({"response", "conversion", "resource"})
_HEADERS_BYTES = 65_536


@dataclass(frozen=True)
class Record:
    """One page of an archive. `kind` is the suffix that a file of its type has."""

    number: int
    """1-based, over all records of the archive."""
    url: str
    created: str
    kind: str
    charset: str
    body: bytes


@dataclass(frozen=True)
class WrongRecord:
    """A record that cannot be read as a page."""

    number: int
    url: str
    reason: str


def read_warc(stream: BinaryIO, longest: int) -> Iterator[Record | WrongRecord]:
    """The pages of an archive, and each record that should be one but cannot be read.

    Requests, metadata and the like are no pages and are passed over. At most `longest` bytes of a page are held.
    Raises DataError where the archive itself is damaged; its message names the last record read.
    """
    fastwarc = _library()
    number = 0
    try:
        for number, record in enumerate(fastwarc.ArchiveIterator(_Forward(stream), parse_http=False), 1):
            if str(record.record_type) in _PAGES:
                yield _read(record, number, longest)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"damaged after record {number}: {error}") from None


def _read(record: Any, number: int, longest: int) -> Record | WrongRecord:
    url = record.headers.get("WARC-Target-URI") or ""
    promised = record.content_length
    if promised > longest + _HEADERS_BYTES:
        return WrongRecord(number, url, longer_than(longest))
    record.freeze()
    if record.content_length < promised:
        return WrongRecord(number, url, f"cut off: {record.content_length} of {promised} bytes")
    if "WARC-Block-Digest" in record.headers and not record.verify_block_digest():
        return WrongRecord(number, url, "its bytes do not match their digest")
    said = record.headers.get("Content-Type") or ""
    if record.is_http:
        record.parse_http(auto_decode="all")
        if record.http_headers.status_code != 200:
            return WrongRecord(number, url, f"the answer was HTTP {record.http_headers.status_code}")
        said = record.http_content_type or ""
    content_type = said.partition(";")[0].strip().lower()
    kind = _KINDS.get(content_type)
    if kind is None:
        return WrongRecord(number, url, f"not a format that is read: {content_type or 'of no type'}")
    try:
        body = record.reader.read(longest + 1)
    except OSError as error:
        return WrongRecord(number, url, f"its content encoding is damaged: {error}")
    if len(body) > longest:
        return WrongRecord(number, url, longer_than(longest))
    return Record(number, url, record.headers.get("WARC-Date") or "", kind, record.http_charset or "", body)


class _Forward:
    """A stream as fastwarc needs it: it asks where it is also of one that cannot go back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at


def _library() -> Any:
    try:
        from fastwarc import warc
    except ImportError:
        raise DataError(
            "web archives are read by fastwarc, which is not installed", hint="pip install 'liuyi[web]'"
        ) from None
    return warc
