"""One request, bounded in time and in bytes. Redirects are not followed here: their target is an address of its own."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

import aiohttp
from yarl import URL

from liuyi.data.sources.crawl.address import CheckedResolver, Lookup, Policy, RefusedAddress
from liuyi.data.sources.crawl.archive import Exchange

_CHUNK_BYTES = 65_536
_REDIRECTS = (301, 302, 303, 307, 308)


class FetchError(Exception):
    """Why there is no answer. `passing` says that another attempt may help."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Fetched:
    """An answer."""

    exchange: Exchange

    @property
    def status(self) -> int:
        return self.exchange.status

    @property
    def is_redirect(self) -> bool:
        return self.status in _REDIRECTS and bool(self.header("Location"))

    def header(self, name: str) -> str:
        """A header of the answer, the last where there are several; empty where there is none."""
        wanted = name.lower().encode()
        found = [value for key, value in self.exchange.response if key.lower() == wanted]
        return found[-1].decode("utf-8", "replace") if found else ""

    @property
    def content_type(self) -> str:
        return self.header("Content-Type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        said = self.header("Content-Type").lower().partition("charset=")[2]
        return said.partition(";")[0].strip("\"' ")

    def decoded(self, longest: int) -> bytes:
        """The body without its content encoding. Raises FetchError where that is damaged, unknown or hides a bomb."""
        encoding = self.header("Content-Encoding").strip().lower()
        if encoding in ("", "identity"):
            return self.exchange.body
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise FetchError(f"in the content encoding {encoding!r}, which was not asked for")
        for bits in (47,) if encoding != "deflate" else (47, -15):
            unpacker = zlib.decompressobj(wbits=bits)
            try:
                data = unpacker.decompress(self.exchange.body, longest + 1)
            except zlib.error:
                continue
            if len(data) > longest:
                raise FetchError(f"longer than {longest / 1e6:g} MB once unpacked")
            return data
        raise FetchError("its content encoding is damaged")


class Fetcher:
    """A client with one identity, no cookies and no proxy, that connects to no other addresses than the policy's."""

    def __init__(
        self, policy: Policy, *, user_agent: str, timeout_s: float, connections: int, lookup: Lookup | None = None
    ) -> None:
        self._policy, self._lookup, self._connections = policy, lookup, connections
        self._timeout_s = timeout_s
        self._headers = {
            "User-Agent": user_agent,
            "Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,application/pdf;q=0.8,*/*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
        }

    async def __aenter__(self) -> Fetcher:
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(self._policy, self._lookup),
            socket_factory=self._policy.socket,
            limit=self._connections,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(
        self,
        url: str,
        longest: int,
        *,
        refuse: Callable[[Fetched], str] = lambda fetched: "",
        truncate: bool = False,
    ) -> Fetched:
        """The answer to a GET of a canonical address, its body at most `longest` bytes.

        `refuse` sees the answer before its body and says why not to read it. `truncate` takes the beginning of a longer
        body. Raises FetchError, and RefusedAddress where the policy forbids the connection.
        """
        try:
            async with self._session.get(URL(url, encoded=True), allow_redirects=False) as response:
                head = Exchange(
                    url,
                    _peer(response),
                    [(name.encode(), value.encode()) for name, value in response.request_info.headers.items()],
                    response.status,
                    response.reason or "",
                    response.raw_headers,
                    b"",
                )
                reason = refuse(Fetched(head))
                if reason:
                    raise FetchError(reason)
                promised = response.content_length
                if promised is not None and promised > longest and not truncate:
                    raise FetchError(f"longer than {longest / 1e6:g} MB")
                body = await self._body(response, longest, truncate)
        except TimeoutError:
            raise FetchError(f"no whole answer within {self._timeout_s:g} s", passing=True) from None
        except RefusedAddress:
            raise
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedAddress):
                raise error.os_error from None
            raise FetchError(f"no connection: {error.os_error}", passing=True) from None
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise FetchError(f"no sound answer: {error or type(error).__name__}", passing=True) from None
        return Fetched(replace(head, body=body))

    async def _body(self, response: aiohttp.ClientResponse, longest: int, truncate: bool) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_chunked(_CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > longest:
                response.close()
                if truncate:
                    break
                raise FetchError(f"longer than {longest / 1e6:g} MB")
        return b"".join(parts)[: longest if truncate else None]


def _peer(response: aiohttp.ClientResponse) -> str:
    """The address that answers; empty where the connection is closed already."""
    transport = response.connection.transport if response.connection else None
    peer = transport.get_extra_info("peername") if transport else None
    return str(peer[0]) if peer else ""
