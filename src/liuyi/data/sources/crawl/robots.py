"""What a host allows: robots.txt as RFC 9309 reads it, with Crawl-delay and Request-rate."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from liuyi.data.sources.crawl.address import RefusedAddress
from liuyi.data.sources.crawl.fetch import Fetcher, FetchError
from liuyi.data.sources.crawl.frontier import Frontier
from liuyi.data.sources.crawl.urls import canonical

_LARGEST_BYTES = 512_000
_MOST_REDIRECTS = 5
_ATTEMPTS = 3
_LONGEST_DELAY_S = 300.0
_UNREACHABLE = 503


@dataclass(frozen=True)
class Rules:
    """What one origin allows to one crawler."""

    parsed: Any
    """What protego made of the file; None where there is none, and nothing is forbidden."""
    agent: str
    unreachable: str = ""
    """Why the file cannot be had though it may exist: then nothing is allowed."""

    def forbids(self, url: str) -> str:
        """Why an address may not be fetched; empty where it may."""
        if self.unreachable:
            return f"robots.txt cannot be had: {self.unreachable}"
        if self.parsed is not None and not self.parsed.can_fetch(url, self.agent):
            return "robots.txt forbids it"
        return ""

    @property
    def delay_s(self) -> float:
        """The least time between two requests, in seconds; 0 where nothing is said."""
        if self.parsed is None:
            return 0.0
        rate = self.parsed.request_rate(self.agent)
        asked = max(self.parsed.crawl_delay(self.agent) or 0.0, rate.seconds / rate.requests if rate else 0.0)
        return min(float(asked), _LONGEST_DELAY_S)

    @property
    def sitemaps(self) -> list[str]:
        """The sitemaps that the file names, in canonical form."""
        named = self.parsed.sitemaps if self.parsed is not None else ()
        return [url for url in map(canonical, named) if url]


class Robots:
    """The rules of every origin, each asked for once and remembered in the frontier."""

    def __init__(self, frontier: Frontier, fetcher: Fetcher, agent: str, wait_s: float) -> None:
        self._frontier, self._fetcher, self._agent, self._wait_s = frontier, fetcher, agent, wait_s
        self._rules: dict[str, asyncio.Task[Rules]] = {}

    async def rules(self, origin: str) -> Rules:
        """The rules of an origin. Raises RefusedAddress where it may not be connected to."""
        if origin not in self._rules:
            self._rules[origin] = asyncio.create_task(self._find(origin))
        return await asyncio.shield(self._rules[origin])

    async def _find(self, origin: str) -> Rules:
        known = self._frontier.robots(origin)
        if known is None:
            known = await self._ask(origin)
            self._frontier.keep_robots(origin, *known)
        status, body = known
        if status == 200:
            from protego import Protego

            return Rules(Protego.parse(body.decode("utf-8", "replace")), self._agent)
        if 400 <= status < 500 and status != 429:
            return Rules(None, self._agent)
        return Rules(None, self._agent, body.decode("utf-8", "replace") or f"HTTP {status}")

    async def _ask(self, origin: str) -> tuple[int, bytes]:
        """(200, text), (a status in the 400s, nothing), or (another status, why)."""
        why = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._wait_s * 2**attempt)
            url = f"{origin}/robots.txt"
            try:
                for _ in range(_MOST_REDIRECTS + 1):
                    fetched = await self._fetcher.get(url, _LARGEST_BYTES, truncate=True)
                    target = canonical(fetched.header("Location"), url) if fetched.is_redirect else None
                    if target is None:
                        break
                    url = target
                if fetched.status == 200:
                    return 200, fetched.decoded(_LARGEST_BYTES)[:_LARGEST_BYTES]
                if fetched.status != 429 and fetched.status < 500:
                    return (fetched.status if fetched.status >= 400 else 404), b""
                why = f"HTTP {fetched.status}"
            except RefusedAddress:
                raise
            except FetchError as error:
                why = str(error)
        return _UNREACHABLE, why.encode()
