"""The address of a server with the OpenAI API, as people write it, and a client for it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import LiuyiError
from liuyi.core.secrets import hide_secrets

if TYPE_CHECKING:
    import httpx

_LAST_PORT = 65_535


def http_url(text: str) -> str:
    """The address without a slash at its end. Raises LiuyiError unless it is one of HTTP."""
    import httpx

    try:
        url = httpx.URL(text)
        problem = "" if url.scheme in ("http", "https") and url.host else "it needs http:// or https:// and a host"
        if (url.port or 0) > _LAST_PORT:
            problem = f"there is no port {url.port}"
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: a host that IDNA does not allow
        problem = str(error)
    if problem:
        raise LiuyiError(f"'{hide_secrets(text)}' is no URL of a server: {problem}", hint="http://host:port")
    return text.rstrip("/")


def api_url(text: str) -> str:
    """The URL below which the paths of the API are, for a server's with `/v1` or without. Raises as `http_url`."""
    return f"{http_url(text).removesuffix('/v1')}/v1/"


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def http_client(url: str, **options: Any) -> httpx.AsyncClient:
    """A client whose addresses begin with `url`, with httpx's options.

    What the environment says of proxies holds but for a server on this machine, which a proxy may look for on its own.
    Raises LiuyiError for a proxy that httpx cannot speak with.
    """
    import httpx

    try:
        return httpx.AsyncClient(base_url=url, trust_env=not is_loopback(httpx.URL(url).host), **options)
    except (ImportError, ValueError) as error:
        hint = "set NO_PROXY to the server's host; for SOCKS: pip install 'httpx[socks]'"
        raise LiuyiError(
            hide_secrets(f"the proxy cannot be used: {error}"), where="the environment", hint=hint
        ) from error
