"""Connections to the server that is put under load.

They are aiohttp's, which reads HTTP in C: a client of httpx took twice the time for a token, which the server lacks
where both share their cores. What the environment says of proxies and certificates holds as it does for httpx, which
the rest of Liuyi uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from liuyi.core.errors import LiuyiError
from liuyi.core.secrets import hide_secrets
from liuyi.infer.address import is_loopback

if TYPE_CHECKING:
    import ssl

CONNECT_S = 10.0
KEPT_ALIVE_S = 5.0


def connect(api: str, key: str = "", *, keep_alive: bool = True) -> aiohttp.ClientSession:
    """As many connections to the API at `api`, which ends with `/v1/`, as there are requests; to be closed.

    A user that the address names goes before the key. Cookies are not kept: requests are those of different clients.
    Raises LiuyiError if the key cannot be sent, or the environment names a proxy that does not speak HTTP.
    """
    if not key.isprintable():
        raise LiuyiError("the server's key has characters that no header may have, such as an end of line")
    headers = {"Content-Type": "application/json"}
    if key and not urlsplit(api).username:
        headers["Authorization"] = f"Bearer {key}"
    pool: dict[str, Any] = {"keepalive_timeout": KEPT_ALIVE_S} if keep_alive else {"force_close": True}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_certificates() if api.startswith("https:") else True, **pool),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy(api),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
    )


def _certificates() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


def _proxy(url: str) -> str | None:
    """What HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say of an address beyond this machine.

    aiohttp's own `trust_env` leaves out ALL_PROXY, and takes passwords for servers from ~/.netrc.
    """
    parts, named = urlsplit(url), getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    host = parts.hostname or ""
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise LiuyiError(f"the proxy {hide_secrets(proxy)} does not speak HTTP", where="the environment")
    return proxy
