"""The loop of a crawl: take an address whose host may be asked, fetch it, keep it, learn its links."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from liuyi.core.errors import DataError
from liuyi.data.retry import retry_after_s
from liuyi.data.sources.crawl.address import Lookup, Policy, RefusedAddress
from liuyi.data.sources.crawl.archive import Archive
from liuyi.data.sources.crawl.fetch import Fetched, Fetcher, FetchError
from liuyi.data.sources.crawl.frontier import Frontier, Target
from liuyi.data.sources.crawl.pages import PageLinks, read_links, read_sitemap
from liuyi.data.sources.crawl.robots import Robots, Rules
from liuyi.data.sources.crawl.urls import canonical, host_of, looks_like_a_trap, origin
from liuyi.data.sources.extract import decode_page

HTML = ("text/html", "application/xhtml+xml")
KEPT = (*HTML, "text/plain", "text/markdown", "application/pdf")
"""Types of pages that are archived."""

_MOST_REDIRECTS = 5
_ATTEMPTS = 3
_LONGEST_WAIT_S = 300.0
_LARGEST_SITEMAP_BYTES = 50_000_000
_MOST_SITEMAPS_PER_HOST = 100


@dataclass(frozen=True)
class Plan:
    """What to crawl, and within which bounds."""

    start: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    """Hosts whose pages are followed; those of `start` where none is named."""
    sitemaps: bool = True
    max_pages: int = 1000
    max_pages_per_host: int = 1000
    max_depth: int = 5
    max_page_bytes: int = 4_000_000
    max_bytes: int = 1_000_000_000
    delay_s: float = 1.0
    """Least time between the beginnings of two requests to a host; robots.txt can only lengthen it."""
    per_host: int = 1
    """Requests to a host at once."""
    concurrency: int = 16
    timeout_s: float = 30.0
    agent: str = "liuyi"
    user_agent: str = "liuyi"
    allow_networks: tuple[str, ...] = ()


@dataclass
class _Host:
    name: str
    pages: int
    """Pages kept from it."""
    busy: int = 0
    next_at: float = 0.0
    """When it may be asked again, on the monotonic clock."""
    delay_s: float = 0.0
    has_waiting: bool = True
    sitemaps: int = 0
    """Read so far."""
    knows_sitemaps: bool = False


@dataclass
class Crawler:
    """A crawl in a folder of its own; started again in the same folder it goes on."""

    plan: Plan
    folder: Path
    lookup: Lookup | None = None
    on_page: Callable[[int], None] = lambda pages: None
    _hosts: dict[str, _Host] = field(default_factory=dict)
    _pages: int = 0
    _bytes: int = 0
    _stopped: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.frontier = Frontier(self.folder / "frontier.sqlite")
        self.archive = Archive(self.folder / "warc")

    def run(self) -> None:
        """Crawl until nothing is left or a bound is met. Raises DataError for a start that is no address."""
        self._seed()
        self._recover()
        asyncio.run(self._crawl())

    def _seed(self) -> None:
        starts = [(url, canonical(url)) for url in self.plan.start]
        for url, address in starts:
            if address is None:
                raise DataError(f"not an address to crawl: {url!r}", hint="write it as https://example.org/path")
        for _, address in starts:
            if address:
                self.frontier.add(Target(address, "page", host_of(address), 0, 0), via="")
        self._scope = set(self.plan.hosts) or self.frontier.start_hosts()

    def _recover(self) -> None:
        for found in self.archive.recover(*self.frontier.archived()):
            target = self.frontier.target(found.url)
            if target is not None and self.frontier.state(found.url) != "done":
                record = found.record
                content_type = (record.http_content_type or "").lower()
                wishes = record.http_headers.get("X-Robots-Tag") or ""
                body = record.reader.read()
                page = self._links(body, content_type, record.http_charset or "", found.url, wishes)
                self._keep(target, page, _digest(body), found.file, found.end)
        self._pages = self.frontier.count("done")
        self._bytes = sum(path.stat().st_size for path in self.archive.files())
        for name in self.frontier.hosts():
            self._host(name)

    async def _crawl(self) -> None:
        plan = self.plan
        fetcher = Fetcher(
            Policy(plan.allow_networks),
            user_agent=plan.user_agent,
            timeout_s=plan.timeout_s,
            connections=plan.concurrency,
            lookup=self.lookup,
        )
        async with fetcher as self._fetcher:
            self._robots = Robots(self.frontier, fetcher, plan.agent, plan.delay_s)
            tasks: set[asyncio.Task[None]] = set()
            try:
                while True:
                    self._start(tasks)
                    due = self._next_due()
                    if tasks:
                        wait = None if due is None or len(tasks) >= plan.concurrency else max(due - time.monotonic(), 0)
                        done, tasks = await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
                    elif due is None:
                        break
                    else:
                        await asyncio.sleep(max(due - time.monotonic(), 0))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        bound = f"not fetched: the bound of {plan.max_pages_per_host} pages a host is reached"
        self.frontier.refuse_waiting(f"not fetched: {self._stopped}" if self._stopped else bound)

    def _start(self, tasks: set[asyncio.Task[None]]) -> None:
        """Begin as many visits as hosts, bounds and politeness allow."""
        now = time.monotonic()
        for host in list(self._hosts.values()):
            while (
                len(tasks) < self.plan.concurrency
                and self._is_free(host)
                and now >= host.next_at
                and not self._is_full()
            ):
                target = self.frontier.take(host.name)
                if target is None:
                    host.has_waiting = False
                    break
                host.busy += 1
                host.next_at = now + max(host.delay_s, self.plan.delay_s)
                tasks.add(asyncio.create_task(self._visit(host, target)))

    def _is_free(self, host: _Host) -> bool:
        """Whether one more request to the host keeps to the bounds."""
        room = host.pages + host.busy < self.plan.max_pages_per_host
        return host.has_waiting and room and host.busy < self.plan.per_host

    def _is_full(self) -> bool:
        under_way = sum(host.busy for host in self._hosts.values())
        if self._pages >= self.plan.max_pages:
            self._stopped = f"the bound of {self.plan.max_pages} pages is reached"
        elif self._bytes >= self.plan.max_bytes:
            self._stopped = f"the bound of {self.plan.max_bytes / 1e6:g} MB is reached"
        return bool(self._stopped) or self._pages + under_way >= self.plan.max_pages

    def _next_due(self) -> float | None:
        """When a host can be asked next; None where nothing waits that could be."""
        if self._is_full():
            return None
        return min((host.next_at for host in self._hosts.values() if self._is_free(host)), default=None)

    async def _visit(self, host: _Host, target: Target) -> None:
        try:
            await self._ask(host, target)
        except RefusedAddress as error:
            self.frontier.settle(target.url, "refused", str(error))
        except FetchError as error:
            if error.passing and target.attempts + 1 < _ATTEMPTS:
                self._wait(host, self.plan.delay_s * 2 ** (target.attempts + 1))
                self.frontier.put_back(target.url)
            else:
                self.frontier.settle(target.url, "failed" if error.passing else "refused", str(error))
        finally:
            host.busy -= 1
            host.has_waiting = True

    async def _ask(self, host: _Host, target: Target) -> None:
        first = self.frontier.robots(origin(target.url)) is None
        rules = await self._robots.rules(origin(target.url))
        if host.delay_s < rules.delay_s:
            host.delay_s = rules.delay_s
        self._add_sitemaps(host, rules, target)
        if first:
            await asyncio.sleep(max(host.delay_s, self.plan.delay_s))
        forbidden = rules.forbids(target.url)
        if forbidden:
            self.frontier.settle(target.url, "refused", forbidden)
            host.next_at = min(host.next_at, time.monotonic())  # nothing was asked
            return
        host.next_at = time.monotonic() + max(host.delay_s, self.plan.delay_s)
        if target.kind == "sitemap":
            await self._read_sitemap(host, target)
            return
        fetched = await self._fetcher.get(target.url, self.plan.max_page_bytes, refuse=_refused)
        if fetched.is_redirect:
            self._redirect(target, fetched)
        elif fetched.status == 200:
            self._learn(target, fetched)
        elif fetched.status == 429 or fetched.status >= 500:
            self._wait(host, retry_after_s(fetched.header("Retry-After")))
            raise FetchError(f"the answer was HTTP {fetched.status}", passing=True)
        else:
            self.frontier.settle(target.url, "failed", f"the answer was HTTP {fetched.status}")

    def _redirect(self, target: Target, fetched: Fetched) -> None:
        place = fetched.header("Location")
        address = canonical(place, target.url)
        if address is None or target.redirects == _MOST_REDIRECTS:
            reason = f"redirects to {place!r}" if address is None else f"more than {_MOST_REDIRECTS} redirects"
            self.frontier.settle(target.url, "refused", reason)
            return
        if target.depth == 0 and not self.plan.hosts:
            self._scope.add(host_of(address))  # example.org leads to www.example.org
        with self.frontier.together():
            if host_of(address) in self._scope:
                self._add(
                    Target(address, target.kind, host_of(address), target.depth, target.redirects + 1), target.url
                )
                self.frontier.settle(target.url, "moved", f"to {address}")
            else:
                self.frontier.settle(target.url, "refused", f"redirects to another host: {address}")

    def _learn(self, target: Target, fetched: Fetched) -> None:
        body = fetched.decoded(self.plan.max_page_bytes)
        digest = _digest(body)
        same = self.frontier.same_body(digest)
        if same and same != target.url:
            self.frontier.settle(target.url, "refused", f"the same page as {same}")
            return
        page = self._links(body, fetched.content_type, fetched.charset, target.url, fetched.header("X-Robots-Tag"))
        elsewhere = page.canonical if page.canonical and page.canonical != target.url else None
        if elsewhere and host_of(elsewhere) in self._scope and self.frontier.state(elsewhere) not in _LOST:
            with self.frontier.together():
                self._add(Target(elsewhere, "page", host_of(elsewhere), target.depth, 0), target.url)
                self._add_links(target, page)
                self.frontier.settle(target.url, "moved", f"its canonical address is {elsewhere}")
        elif not page.index:
            with self.frontier.together():
                self._add_links(target, page)
                self.frontier.settle(target.url, "refused", "the page asks not to be kept (noindex)")
        else:
            file, size = self.archive.add(fetched.exchange)
            self._keep(target, page, digest, file, size)
            self._pages += 1
            self._bytes = sum(path.stat().st_size for path in self.archive.files())
            self._host(target.host).pages += 1
            self.on_page(self._pages)

    def _keep(self, target: Target, page: PageLinks, digest: str, file: str, end: int) -> None:
        """A page that lies in the archive: all of what it teaches becomes known, or nothing."""
        with self.frontier.together():
            self._add_links(target, page)
            self.frontier.settle(target.url, "done", "", digest)
            self.frontier.keep_end(file, end)

    def _links(self, body: bytes, content_type: str, charset: str, url: str, wishes: str) -> PageLinks:
        if content_type not in HTML:
            return PageLinks(index="noindex" not in wishes.lower())
        try:
            return read_links(decode_page(body, charset), url, wishes)
        except DataError as error:
            raise FetchError(error.message) from None

    def _add_links(self, target: Target, page: PageLinks) -> None:
        for link in page.links:
            if host_of(link) in self._scope:
                self._add(Target(link, "page", host_of(link), target.depth + 1, 0), target.url)

    def _add(self, target: Target, via: str) -> None:
        refused = looks_like_a_trap(target.url)
        if target.depth > self.plan.max_depth:
            refused = f"more than {self.plan.max_depth} links from the start"
        if self.frontier.add(target, via, refused) and not refused:
            self._host(target.host).has_waiting = True

    def _add_sitemaps(self, host: _Host, rules: Rules, target: Target) -> None:
        if self.plan.sitemaps and host.name in self._scope and not host.knows_sitemaps:
            host.knows_sitemaps = True
            for place in rules.sitemaps or [f"{origin(target.url)}/sitemap.xml"]:
                if host_of(place) in self._scope:
                    self._add(Target(place, "sitemap", host_of(place), 0, 0), via=f"{origin(target.url)}/robots.txt")

    async def _read_sitemap(self, host: _Host, target: Target) -> None:
        if host.sitemaps == _MOST_SITEMAPS_PER_HOST:
            self.frontier.settle(target.url, "refused", f"more than {_MOST_SITEMAPS_PER_HOST} sitemaps of a host")
            return
        host.sitemaps += 1
        fetched = await self._fetcher.get(target.url, _LARGEST_SITEMAP_BYTES)
        if fetched.is_redirect:
            self._redirect(target, fetched)
            return
        if fetched.status != 200:
            self.frontier.settle(target.url, "failed", f"the answer was HTTP {fetched.status}")
            return
        pages, sitemaps = read_sitemap(fetched.decoded(_LARGEST_SITEMAP_BYTES), target.url)
        with self.frontier.together():
            for page in pages:
                if host_of(page) in self._scope:
                    self._add(Target(page, "page", host_of(page), 1, 0), target.url)
            for sitemap in sitemaps[: _MOST_SITEMAPS_PER_HOST - host.sitemaps]:
                if host_of(sitemap) in self._scope:
                    self._add(Target(sitemap, "sitemap", host_of(sitemap), 0, 0), target.url)
            self.frontier.settle(target.url, "done")

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            self._hosts[name] = _Host(name, self.frontier.count("done", name))
        return self._hosts[name]

    def _wait(self, host: _Host, seconds: float) -> None:
        host.next_at = max(host.next_at, time.monotonic() + min(seconds, _LONGEST_WAIT_S))


_LOST = ("moved", "refused", "failed")
"""States of a canonical address under which its page will not come."""


def _refused(fetched: Fetched) -> str:
    """Why the body of an answer is not worth reading."""
    if fetched.status == 200 and fetched.content_type not in KEPT:
        return f"not a page: {fetched.content_type or 'of no type'}"
    return ""


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
