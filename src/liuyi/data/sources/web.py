"""HTML to plain text with the standard library: what is read aloud, in lines, without scripts, styles and menus."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_SILENT = frozenset({"script", "style", "noscript", "template", "nav", "footer", "aside", "svg", "head"})
_VOID = frozenset(
    {"br", "hr", "img", "input", "link", "meta", "wbr", "col", "area", "base", "embed", "source", "track"}
)
_PARAGRAPH = frozenset(
    {"p", "div", "section", "article", "main", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre"}
    | {"blockquote", "figure", "hr", "body"}
)
_LINE = frozenset({"br", "li", "tr", "dt", "dd", "caption", "figcaption"})
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def html_text(html: str) -> str:
    """The text of an HTML page. Paragraphs are set apart by an empty line; white space in `<pre>` is kept."""
    parser = _Reader()
    parser.feed(html)
    parser.close()
    text = "".join(parser.parts)
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent:
            if tag not in _VOID:
                self._silent.append(tag)
            return
        if tag in _SILENT:
            self._silent.append(tag)
            return
        self._pre += tag == "pre"
        self._break(tag)
        if tag in ("td", "th"):
            self.parts.append("\t" if self.parts and not self.parts[-1].endswith("\n") else "")

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag in self._silent:
                while self._silent.pop() != tag:
                    pass
            return
        self._pre -= tag == "pre" and self._pre > 0
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if not self._pre:
            data = _SPACES.sub(" ", data.replace("\n", " "))
            if not self.parts or self.parts[-1].endswith("\n"):
                data = data.lstrip()
        self.parts.append(data)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # what no browser knows either is a comment to them
            return self.parse_bogus_comment(i, report)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPH:
            self.parts.append("\n\n")
        elif tag in _LINE:
            self.parts.append("\n")
