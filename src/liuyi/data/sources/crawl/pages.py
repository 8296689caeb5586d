"""What a fetched page says to a crawler: its links, its canonical address and its wishes; and what sitemaps list."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from liuyi.data.sources.crawl.urls import canonical

_MOST_LINKS = 5000
_LARGEST_SITEMAP_BYTES = 50_000_000
_MOST_SITEMAP_URLS = 50_000


@dataclass(frozen=True)
class PageLinks:
    """Canonical addresses of what a page names."""

    links: list[str] = field(default_factory=list)
    canonical: str | None = None
    index: bool = True
    """Whether the page may be kept: it does not say `noindex`."""


def read_links(html: str, url: str, robots_header: str = "") -> PageLinks:
    """The links of a page at `url` that a crawler may follow, each once, in the order of the page.

    `nofollow` and `noindex` are heeded, in the page's own meta tag and in the header X-Robots-Tag.
    """
    from lxml import etree
    from lxml import html as lxml_html

    try:
        tree = lxml_html.document_fromstring(
            html.encode("utf-8", "replace"), parser=lxml_html.HTMLParser(encoding="utf-8")
        )
    except (etree.ParserError, ValueError):
        return PageLinks()
    wishes = robots_header.lower()
    for meta in tree.iter("meta"):
        if (meta.get("name") or "").lower() == "robots":
            wishes += "," + (meta.get("content") or "").lower()
    base = next((tag.get("href") for tag in tree.iter("base") if tag.get("href")), "")
    base = canonical(base, url) or url
    named = None
    for link in tree.iter("link"):
        if "canonical" in (link.get("rel") or "").lower().split() and link.get("href"):
            named = canonical(link.get("href"), base)
            break
    found: dict[str, None] = {}
    if "nofollow" not in wishes and "none" not in wishes:
        for anchor in tree.iter("a", "area"):
            target = canonical(anchor.get("href"), base) if anchor.get("href") else None
            if target and "nofollow" not in (anchor.get("rel") or "").lower().split():
                found.setdefault(target)
            if len(found) == _MOST_LINKS:
                break
    return PageLinks(list(found), named, "noindex" not in wishes and "none" not in wishes)


def read_sitemap(data: bytes, url: str) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) of a sitemap in XML or as a list of addresses, plain or gzip; at most as many as the
    protocol allows, in canonical form. What cannot be read gives none.
    """
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data)
    pages: dict[str, None] = {}
    sitemaps: dict[str, None] = {}
    found = _xml_places(data) if data.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<" else _text_places(data)
    for is_sitemap, place in found:
        target = canonical(place, url)
        if target:
            (sitemaps if is_sitemap else pages).setdefault(target)
        if len(pages) + len(sitemaps) == _MOST_SITEMAP_URLS:
            break
    return list(pages), list(sitemaps)


def _xml_places(data: bytes) -> Iterator[tuple[bool, str]]:
    from lxml import etree

    reader = etree.iterparse(
        io.BytesIO(data), tag=("{*}loc",), resolve_entities=False, no_network=True, recover=True, huge_tree=False
    )
    try:
        for _, place in reader:
            parent = place.getparent()
            name = etree.QName(parent).localname if parent is not None else ""
            if place.text and name in ("url", "sitemap"):
                yield name == "sitemap", place.text.strip()
    except etree.XMLSyntaxError:
        return


def _text_places(data: bytes) -> Iterator[tuple[bool, str]]:
    for line in data.decode("utf-8", "replace").splitlines():
        if line.strip().startswith("http"):
            yield False, line.strip()


def _unpacked(data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(_LARGEST_SITEMAP_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
