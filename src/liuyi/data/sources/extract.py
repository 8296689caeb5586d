"""The main text of a web page as Markdown: without menus, banners and footers, with its tables and its code.

Three extractors: `trafilatura` (most exact), `resiliparse` (about ten times as fast), `plain` (the standard library:
everything but scripts, menus and footers). The first two are the extra `web`; `benchmarks/data/extraction.py` measures
all three.
"""

from __future__ import annotations

import codecs
import re
from typing import Literal, get_args

from liuyi.core.errors import DataError
from liuyi.data.sources.web import html_text
from liuyi.data.text import decode, encoding_of

Extractor = Literal["trafilatura", "resiliparse", "plain"]
EXTRACTORS: tuple[Extractor, ...] = get_args(Extractor)

_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
_DECLARED_WITHIN = 4096
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
                return data.decode(_MEANT.get(known, known))
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
    import trafilatura

    found = trafilatura.extract(
        html,
        url=url or None,
        output_format="markdown",
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        include_links=False,
    )
    return found or ""


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    text = extract_plain_text(HTMLTree.parse(html), main_content=True, alt_texts=False, links=False)
    return str(text)
