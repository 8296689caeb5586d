"""Crawls of a test's own web server, and what they left behind."""

from __future__ import annotations

from pathlib import Path

from fastwarc.warc import ArchiveIterator
from web_support import Site

from liuyi.data.sources.crawl.crawler import Crawler, Plan

LOCAL = ("127.0.0.1",)


def page(text: str, *links: str, head: str = "") -> str:
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    return f"<html><head><title>t</title>{head}</head><body><p>{text}</p>{anchors}</body></html>"


def crawl(site: Site, folder: Path, *start: str, **plan: object) -> Crawler:
    given = {"delay_s": 0.0, "per_host": 4, "timeout_s": 30.0, "allow_networks": LOCAL} | plan
    lookup = given.pop("lookup", None)
    addresses = tuple(f"{site.url}{path}" if path.startswith("/") else path for path in start or ("/",))
    crawler = Crawler(Plan(addresses, **given), folder, lookup)  # type: ignore[arg-type]
    crawler.run()
    return crawler


def states(crawler: Crawler, site: Site) -> dict[str, tuple[str, str]]:
    """(state, reason) by path."""
    return {visit.url.removeprefix(site.url): (visit.state, visit.reason) for visit in crawler.frontier.visits()}


def done(crawler: Crawler, site: Site) -> set[str]:
    return {path for path, (state, _) in states(crawler, site).items() if state == "done" and not path.endswith(".xml")}


def archived(folder: Path) -> list[str]:
    """The addresses of the responses in the archive, as another reader sees them."""
    found = []
    for path in sorted((folder / "warc").glob("*.warc.gz")):
        with path.open("rb") as file:
            for record in ArchiveIterator(file):
                if str(record.record_type) == "response":
                    found.append(record.headers["WARC-Target-URI"])
    return found
