"""The main text of a web page as Markdown: without menus, banners and footers, with its tables and its code.

Three extractors: `trafilatura` (most exact), `resiliparse` (about ten times as fast), `plain` (the standard library:
everything but scripts, menus and footers). The first two are the extra `web`; `benchmarks/data/extraction.py` measures
all three.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, Literal, get_args

from liuyi.core.errors import DataError
from liuyi.data.sources.web import html_text
from liuyi.data.text import decode, encoding_of, mend_surrogates

Extractor = Literal["trafilatura", "resiliparse", "plain"]
EXTRACTORS: tuple[Extractor, ...] = get_args(Extractor)

_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
_DECLARED_WITHIN = 4096
_FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_BLANK = "\u2800"
"""Stands for an empty line of code, which trafilatura would leave out: a line of this alone looks empty too."""
_PARTS = ("h1", "h2", "h3", "h4", "table")
_RAISED = re.compile(r"</?su[bp]>")
_MEANT = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-1": "cp1252", "shift_jis": "cp932"}
"""What browsers read where a page declares these (WHATWG Encoding Standard)."""


def check_extractor(name: Extractor) -> None:
    """Raise DataError where the library of an extractor is not installed."""
    import importlib.util

    missing = name != "plain" and importlib.util.find_spec(name) is None
    if missing:
        raise DataError(
            f"web pages are read by {name}, which is not installed",
            hint="pip install 'liuyi[web]', or choose the extractor 'plain', which needs nothing",
        )


def decode_page(data: bytes, charset: str = "") -> str:
    """The HTML of a page: by byte-order mark, else as the server says in `charset`, else as the page itself does, as
    long as the bytes agree; else as `liuyi.data.text.decode` finds.

    Raises DataError where the bytes are not text.
    """
    declared = _DECLARED.search(data[:_DECLARED_WITHIN])
    said = [charset, declared[1].decode("ascii", "replace") if declared else ""]
    if not data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        for name in filter(None, said):
            try:
                known = codecs.lookup(name).name
                return mend_surrogates(data.decode(_MEANT.get(known, known)))
            except (LookupError, ValueError):
                continue
    encoding_of(data)
    return decode(data)


def extract(html: str, extractor: Extractor, url: str = "") -> str:
    """The main text of a page; empty where there is none. Any text is taken for HTML."""
    if extractor == "plain":
        return html_text(html)
    if extractor == "resiliparse":
        return _resiliparse(html)
    return _trafilatura(html, url)


def _trafilatura(html: str, url: str) -> str:
    import logging

    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    tree = trafilatura.load_html(html)
    if tree is None:  # it takes no page of a single part
        tree = trafilatura.load_html(f"<html><head></head><body>{html}</body></html>")
    if tree is None:
        return ""
    heading = _only_heading(tree)
    _mark_code(tree)
    _open_layout_tables(tree)
    _open_definitions(tree)
    found = trafilatura.extract(
        tree,
        url=url or None,
        output_format="markdown",
        favor_precision=True,
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        include_links=False,
    )
    text = _unescaped(found or "")
    said = heading in (line.lstrip("# ") for line in text.split("\n"))
    return text if not text or not heading or said else f"# {heading}\n\n{text}"


def _only_heading(tree: Any) -> str:
    """The text of the page's first-level heading; trafilatura loses it where it stands above the main part."""
    headings = [" ".join(heading.text_content().split()) for heading in tree.iter("h1")]
    return headings[0].rstrip("¶") if len(headings) == 1 else ""


def _mark_code(tree: Any) -> None:
    """Make every `<pre>` one that trafilatura takes for code, whatever highlights it: its white space is kept then."""
    from lxml import etree

    for block in list(tree.iter("pre")):
        lines, tail = block.text_content().strip("\n").split("\n"), block.tail
        text = "\n".join(line if line.strip() else _BLANK for line in lines)
        block.clear()
        block.tail = tail
        etree.SubElement(block, "code").text = text


def _open_layout_tables(tree: Any) -> None:
    """Turn tables that lay out a page, as old pages do, into plain blocks: a cell of theirs holds a heading, a table or
    several paragraphs.
    """
    for table in list(tree.iter("table")):
        own = [part for part in table.iter("tbody", "tr", "td") if next(part.iterancestors("table"), None) is table]
        cells = [part for part in own if part.tag == "td"]
        if any(next(cell.iter(*_PARTS), None) is not None or len(list(cell.iter("p"))) > 1 for cell in cells):
            for part in (table, *own):
                part.tag = "div"


def _open_definitions(tree: Any) -> None:
    """Turn lists of definitions into paragraphs, which trafilatura keeps."""
    for part in list(tree.iter("dl", "dt", "dd")):
        part.tag = "div" if part.tag == "dl" or len(part) else "p"


def _unescaped(markdown: str) -> str:
    """Without the backslashes that protect punctuation and the tags of raised letters, but for what is code."""
    parts = _FENCE.split(markdown)
    parts[::2] = [_RAISED.sub("", _ESCAPED.sub(r"\1", part)) for part in parts[::2]]
    return re.sub(f"(?m)^{_BLANK}$", "", "".join(parts))


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    text = extract_plain_text(HTMLTree.parse(html), main_content=True, alt_texts=False, links=False)
    return str(text)
