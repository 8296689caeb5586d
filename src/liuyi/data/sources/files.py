"""Documents from files of one's own: texts, web pages, Word and PDF documents, web archives, and rows of tables.

Files may be compressed, and lie in a folder or behind a URL. They are read as a stream, so that their size does not
matter. Every file and row is either read, or named with the reason why it was not; only hidden files and folders are
passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from liuyi.core.errors import DataError
from liuyi.data.corpus import Document, Rejected, document_id
from liuyi.data.pool import map_ordered
from liuyi.data.sources.extract import Extractor, decode_page, extract
from liuyi.data.sources.location import SourceFile
from liuyi.data.sources.man import is_man_page, man_text
from liuyi.data.sources.office import docx_text, pdf_text
from liuyi.data.sources.pieces import read_pieces
from liuyi.data.sources.rows import longer_than
from liuyi.data.sources.stream import COMPRESSED, opened, suffixes
from liuyi.data.sources.tables import TABLES, UNREADABLE, TableRow, broken_off, read_table
from liuyi.data.sources.warc import Record, WrongRecord, read_warc
from liuyi.data.text import decode, mend

TEXT = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
HTML = frozenset({".html", ".htm", ".xhtml"})
OFFICE = frozenset({".docx", ".pdf"})
WARC = ".warc"
MAN = ".man"
"""Manual pages, whose names end with the section: `man1/ls.1`."""
KNOWN = tuple(sorted(TEXT | HTML | OFFICE | TABLES | {WARC}))

OPTIONAL_FIELDS = ("url", "license", "lang", "created", "cluster")
_HEAVY = HTML | OFFICE | {WARC, MAN}
_PER_TASK = 16
_TASK_BYTES = 4_000_000


@dataclass(frozen=True)
class Reading:
    """How to read files: which field of a row is its text, and what holds where a row does not say."""

    text_field: str = "text"
    license: str = "unknown"
    cluster: str = "document"
    """`document`, `file` or `folder`: what is held out together, where rows have no `cluster` of their own."""
    extractor: Extractor = "trafilatura"
    longest: int = 16_000_000
    """Bytes of one document: a longer text file is divided, a longer row or page is rejected."""


@dataclass(frozen=True)
class Page:
    """A text, page or document still to be read. `kind` is the suffix that says its format."""

    kind: str
    data: bytes
    name: str
    line: int
    """On which it begins, or the number of its record; 0 where it is the whole file."""
    source: str
    url: str
    column: int = 0
    """Bytes of its line that stand before it."""
    created: str = ""
    charset: str = ""
    """The encoding that its server named."""


Found = Document | Rejected


def read_files(
    files: Sequence[SourceFile],
    source: str,
    reading: Reading,
    *,
    workers: int | None = None,
    on_file: Callable[[int], None] = lambda done: None,
) -> Iterator[Found]:
    """The documents of `files`, and what could not be read as one, in the order of the files.

    Pages are extracted by `workers` processes (default: one a core); the result does not depend on their number.
    `on_file` hears how many files were begun and ended.
    """

    stream = _all(files, source, reading, on_file)
    if not any(_kind(file) in _HEAVY for file in files):
        yield from (_finished(one, reading) for one in stream)
        return
    for done in map_ordered(_finish, _tasks(stream, reading), workers):
        yield from done


def _tasks(stream: Iterator[Found | Page], reading: Reading) -> Iterator[tuple[list[Found | Page], Reading]]:
    """Pieces of the stream for the workers, bounded in number and in bytes: several wait at a time."""
    task: list[Found | Page] = []
    size = 0
    for one in stream:
        task.append(one)
        size += len(one.data) if isinstance(one, Page) else 0
        if len(task) == _PER_TASK or size >= _TASK_BYTES:
            yield task, reading
            task, size = [], 0
    if task:
        yield task, reading


def _all(
    files: Sequence[SourceFile], source: str, reading: Reading, on_file: Callable[[int], None]
) -> Iterator[Found | Page]:
    for number, file in enumerate(files, 1):
        line = 0
        try:
            for at, one in _contents(file, source, reading):
                line = at
                yield one
        except UNREADABLE as error:
            yield broken_off(file.name, line, error)
        on_file(number)


def _contents(file: SourceFile, source: str, reading: Reading) -> Iterator[tuple[int, Found | Page]]:
    """(line or number of the record, what is there) for what one file holds."""
    kind = _kind(file)
    if kind in TABLES:
        for row in read_table(file, reading.longest, lambda names: _columns(names, reading)):
            yield row.line, document_of_row(row, file.name, source, reading)
    elif kind in TEXT:
        with opened(file) as open_file:
            for line, column, data in read_pieces(open_file, reading.longest):
                yield line, Page(kind, data, file.name, line, source, file.name, column=column)
    elif kind in HTML | OFFICE | {MAN}:
        with opened(file) as open_file:
            data = open_file.stream.read(reading.longest + 1)
        long = len(data) > reading.longest
        reason = Rejected(file.name, 0, longer_than(reading.longest))
        yield 0, reason if long else Page(kind, data, file.name, 0, source, file.name)
    elif kind == WARC:
        with opened(file) as open_file:
            for record in read_warc(open_file.stream, reading.longest):
                yield record.number, _from_record(record, file.name, source)
    else:
        read = f"{' '.join(KNOWN)} and manual pages, also with {' '.join(COMPRESSED)}"
        yield 0, Rejected(file.name, 0, f"not a format that is read: {kind or 'no suffix'}; these are {read}")


def _kind(file: SourceFile) -> str:
    return file.kind or (MAN if is_man_page(file.place) else suffixes(file.name)[0])


def _columns(names: list[str], reading: Reading) -> Sequence[str]:
    if reading.text_field not in names:
        raise DataError(_no_field(reading.text_field, names))
    return [name for name in (reading.text_field, *OPTIONAL_FIELDS) if name in names]


def _from_record(record: Record | WrongRecord, name: str, source: str) -> Rejected | Page:
    if isinstance(record, WrongRecord):
        return Rejected(name, record.number, record.reason, record.url)
    return Page(
        record.kind,
        record.body,
        name,
        record.number,
        source,
        record.url,
        created=record.created,
        charset=record.charset,
    )


def _finish(task: tuple[list[Found | Page], Reading]) -> list[Found]:
    found, reading = task
    return [_finished(one, reading) for one in found]


def _finished(one: Found | Page, reading: Reading) -> Found:
    if not isinstance(one, Page):
        return one
    try:
        text = mend(_text_of(one, reading.extractor)).strip()
    except DataError as error:
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
        return Rejected(one.name, one.line, reason, one.url)
    if not text:
        return Rejected(one.name, one.line, "no text in it" if one.data.strip() else "empty", one.url)
    text += "\n"
    place = f"{one.name}#{one.line}" if one.line else one.name
    place += f":{one.column}" if one.column else ""
    return Document(
        id=document_id(one.source, place, text),
        text=text,
        source=one.source,
        url=one.url if one.url != one.name else place,
        license=reading.license,
        created=one.created,
        cluster=_cluster(one.name, place, reading),
    )


def _text_of(page: Page, extractor: Extractor) -> str:
    if page.kind in HTML:
        return extract(decode_page(page.data, page.charset), extractor, page.url)
    if page.kind == ".docx":
        return docx_text(page.data)
    if page.kind == ".pdf":
        return pdf_text(page.data)
    if page.kind == MAN:
        if page.data.startswith(b".so "):
            raise DataError("points to another manual page")
        return man_text(decode(page.data))
    return decode(page.data)


def document_of_row(found: TableRow, name: str, source: str, reading: Reading) -> Document | Rejected:
    """The document that a row of `name` is, or why it is none."""
    row = found.row
    if isinstance(row, str):
        return found.rejected(name, row)
    if reading.text_field not in row:
        return found.rejected(name, _no_field(reading.text_field, row))
    text = row[reading.text_field]
    if not isinstance(text, str):
        return found.rejected(name, f"'{reading.text_field}' is {'missing' if text is None else 'not text'}")
    text = mend(text).strip()
    if not text:
        return found.rejected(name, f"'{reading.text_field}' is empty")
    text += "\n"
    place = f"{name}#{found.number}"
    said = {key: mend(str(row[key])) for key in OPTIONAL_FIELDS if row.get(key)}
    return Document(
        id=document_id(source, place, text),
        text=text,
        source=source,
        url=said.get("url", place),
        license=said.get("license", reading.license),
        lang=said.get("lang", ""),
        created=said.get("created", ""),
        cluster=said.get("cluster") or _cluster(name, place, reading),
    )


def _no_field(field: str, names: Iterable[str]) -> str:
    return f"there is no field '{field}': the fields are {', '.join(sorted(map(str, names)))}"


def _cluster(name: str, place: str, reading: Reading) -> str:
    if reading.cluster == "folder":
        return name.rpartition("/")[0] or "."
    return name if reading.cluster == "file" else place
