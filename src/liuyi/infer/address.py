"""The address of a server with the OpenAI API, as people write it."""

from __future__ import annotations

from liuyi.core.errors import LiuyiError
from liuyi.core.secrets import hide_secrets

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
