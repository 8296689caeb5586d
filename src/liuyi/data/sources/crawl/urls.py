"""One way to write each address, so that a page is known again however a link to it is written."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from urllib.parse import parse_qsl, quote, urljoin, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443}
_LONGEST = 1000
_MOST_SEGMENTS = 15
_MOST_REPEATS = 3
_MOST_PARAMETERS = 8
_SAFE_PATH = "/:@!$&'()*+,;=~%"
_SAFE_QUERY = "/:@!$'()*+,;~?%"
_TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|mc_[ce]id|_ga|_gl|igshid|spm|phpsessid|jsessionid|sessionid|aspsessionid\w*",
    re.IGNORECASE,
)
_SESSION_IN_PATH = re.compile(r";jsessionid=[^/?]*", re.IGNORECASE)
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def canonical(url: str, base: str = "") -> str | None:
    """The address written in the one way that is used here; None for what is no http address, or holds a password.

    Scheme and host in lower case (IDNA), no default port, no fragment, no `.` and `..`, escapes only where needed and
    in capitals, parameters sorted, those that only track or name a session left out.

    >>> canonical("HTTP://Example.com:80/a/../b/?utm_source=x&z=1&a=%7e#top")
    'http://example.com/b/?a=~&z=1'
    """
    try:
        parts = urlsplit(urljoin(base, url.strip()) if base else url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
        if parts.scheme.lower() not in _PORTS or not host or parts.username is not None:
            return None
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    host = f"[{host}]" if ":" in host else host.lower()
    place = host if port in (None, _PORTS[scheme]) else f"{host}:{port}"
    return urlunsplit((scheme, place, _path(parts.path), _query(parts.query), ""))


def origin(url: str) -> str:
    """Scheme, host and port of a canonical address: what a robots.txt speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_of(url: str) -> str:
    """The host of a canonical address, with its port if that is not the default one."""
    return urlsplit(url).netloc


def looks_like_a_trap(url: str) -> str:
    """Why an address looks as if pages without end were made up behind it; empty where it does not."""
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment]
    if len(url) > _LONGEST:
        return f"a trap: an address of more than {_LONGEST} characters"
    if len(segments) > _MOST_SEGMENTS:
        return f"a trap: more than {_MOST_SEGMENTS} folders deep"
    if segments and max(Counter(segments).values()) > _MOST_REPEATS:
        return f"a trap: the same folder more than {_MOST_REPEATS} times"
    if len(parse_qsl(parts.query, keep_blank_values=True)) > _MOST_PARAMETERS:
        return f"a trap: more than {_MOST_PARAMETERS} parameters"
    return ""


def _path(path: str) -> str:
    path = _escaped(_SESSION_IN_PATH.sub("", path), _SAFE_PATH)
    clean = posixpath.normpath("/" + path.lstrip("/")) if path.strip("/") else "/"
    return clean + "/" if path.endswith(("/", "/.", "/..")) and clean != "/" else clean


def _query(query: str) -> str:
    kept = []
    for part in query.split("&"):
        name = part.partition("=")[0]
        if part and not _TRACKING.fullmatch(name):
            kept.append(_escaped(part, _SAFE_QUERY + "="))
    return "&".join(sorted(kept))


def _escaped(text: str, safe: str) -> str:
    text = quote(text, safe=safe)
    return _ESCAPE.sub(lambda found: _plain_or_capital(found[1]), text)


def _plain_or_capital(code: str) -> str:
    letter = chr(int(code, 16))
    return letter if letter in _UNRESERVED else f"%{code.upper()}"
