"""The text of Word documents (python-docx) and PDF files (pypdf), the extra `docs`."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from typing import Any

from liuyi.core.errors import DataError

_MOST_UNPACKED = 20
"""How many times its packed size a Word document may have; more is a bomb."""
_LEAST_UNPACKED_BYTES = 64_000_000


def docx_text(data: bytes) -> str:
    """Headings as Markdown, paragraphs, lists and tables (cells between `|`) in the order of the document.

    Raises DataError where it cannot be read.
    """
    docx = _needed("docx", "python-docx")
    try:
        _refuse_bombs(data)
        document = docx.Document(io.BytesIO(data))
        return "\n\n".join(_blocks(document))
    except DataError:
        raise
    except Exception as error:  # python-docx raises whatever a damaged archive or its XML lead to
        raise DataError(f"not readable as a Word document: {_said(error)}") from None


def pdf_text(data: bytes) -> str:
    """The text of every page, pages set apart by an empty line.

    Raises DataError where the file is damaged, locked by a password, or holds no text (a scan).
    """
    pypdf = _needed("pypdf", "pypdf")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("locked by a password")
        text = "\n\n".join(filter(None, (page.extract_text().strip() for page in reader.pages)))
    except DataError:
        raise
    except Exception as error:  # a damaged file can lead pypdf anywhere
        raise DataError(f"not readable as PDF: {_said(error)}") from None
    if not text:
        raise DataError("no text in it: a scan needs recognition first")
    return text


def _blocks(document: Any) -> Iterator[str]:
    from docx.table import Table

    for block in document.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join("| " + " | ".join(_cells(row)) + " |" for row in block.rows)
        elif block.text.strip():
            style = block.style.name if block.style is not None else ""
            level = style.removeprefix("Heading ") if style.startswith("Heading ") else ""
            if style == "Title":
                level = "1"
            mark = "#" * int(level) + " " if level.isdigit() else "- " if style.startswith("List") else ""
            yield mark + block.text.strip()


def _cells(row: Any) -> Iterator[str]:
    seen: set[int] = set()
    for cell in row.cells:
        if id(cell._tc) not in seen:  # a cell over several columns is given once for each
            seen.add(id(cell._tc))
            yield " ".join(cell.text.split())


def _refuse_bombs(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_LEAST_UNPACKED_BYTES, _MOST_UNPACKED * len(data)):
        raise DataError(f"unpacks to {unpacked / 1e6:,.0f} MB, which no document does")


def _needed(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"this format is read by {package}, which is not installed", hint="pip install 'liuyi[docs]'"
        ) from None


def _said(error: Exception) -> str:
    return f"{error}" or type(error).__name__
