"""Documents from a folder of one's own: text, Markdown, reStructuredText, HTML, and rows of JSONL, CSV and Parquet.

Every file is either read, or named with the reason why it was not; only hidden files and folders are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liuyi.core.errors import DataError
from liuyi.data.corpus import Document, Rejected, document_id
from liuyi.data.sources.rows import read_csv, read_jsonl, read_parquet
from liuyi.data.sources.web import html_text
from liuyi.data.text import decode, mend

_TEXT = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
_HTML = frozenset({".html", ".htm", ".xhtml"})
_ROWS: Mapping[str, Callable[[Path], Iterator[tuple[int, dict[str, Any] | str]]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
KNOWN = tuple(sorted(_TEXT | _HTML | set(_ROWS)))

_OPTIONAL = ("url", "license", "lang", "created", "cluster")
_HEAD_CHARS = 200


@dataclass(frozen=True)
class Reading:
    """How to read a folder: which field of a row is its text, and what holds where a row does not say."""

    text_field: str
    license: str
    cluster: str
    """`document`, `file` or `folder`: what is held out together, where rows have no `cluster` of their own."""


def find_files(root: Path) -> list[Path]:
    """The files under `root` in the order of their paths, or `root` itself if it is a file; links to folders are not
    followed, hidden files and folders are passed over.

    Raises DataError where there is nothing.
    """
    if root.is_file():
        return [root]
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    if not found:
        raise DataError("there are no files here", where=str(root))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_file(path: Path, root: Path, reading: Reading) -> Iterator[Document | Rejected]:
    """The documents of one file, and what could not be read as one, in the order of the file."""
    name = path.relative_to(root).as_posix() if path != root else path.name
    source = root.resolve().name if path != root else root.stem
    suffix = path.suffix.lower()
    try:
        if suffix in _ROWS:
            for line, row in _ROWS[suffix](path):
                yield _from_row(row, line, name, source, reading)
        elif suffix in _TEXT | _HTML:
            text = decode(path.read_bytes())
            yield _from_text(html_text(text) if suffix in _HTML else text, name, source, reading)
        else:
            yield Rejected(
                name, 0, f"not a format that is read ({suffix or 'no suffix'}); these are: {' '.join(KNOWN)}"
            )
    except DataError as error:
        yield Rejected(name, 0, error.message)
    except OSError as error:
        yield Rejected(name, 0, error.strerror or type(error).__name__)


def _from_text(text: str, name: str, source: str, reading: Reading) -> Document | Rejected:
    text = mend(text).strip()
    if not text:
        return Rejected(name, 0, "empty")
    text += "\n"
    return Document(
        id=document_id(source, name, text),
        text=text,
        source=source,
        url=name,
        license=reading.license,
        cluster=_cluster(name, name, reading),
    )


def _from_row(row: dict[str, Any] | str, line: int, name: str, source: str, reading: Reading) -> Document | Rejected:
    if isinstance(row, str):
        return Rejected(name, line, row)
    if reading.text_field not in row:
        return Rejected(
            name, line, f"there is no field '{reading.text_field}' among {sorted(map(str, row))}", _head(row)
        )
    text = row[reading.text_field]
    if not isinstance(text, str):
        reason = "missing" if text is None else "not text"
        return Rejected(name, line, f"'{reading.text_field}' is {reason}", _head(row))
    text = mend(text).strip()
    if not text:
        return Rejected(name, line, f"'{reading.text_field}' is empty", _head(row))
    text += "\n"
    place = f"{name}#{line}"
    said = {key: str(row[key]) for key in _OPTIONAL if row.get(key)}
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


def _cluster(name: str, place: str, reading: Reading) -> str:
    if reading.cluster == "folder":
        return name.rpartition("/")[0] or "."
    return name if reading.cluster == "file" else place


def _head(row: Mapping[str, Any]) -> str:
    return mend(str(row)[:_HEAD_CHARS])
