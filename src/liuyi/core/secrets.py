"""Addresses may carry passwords; what people and logs see may not."""

from __future__ import annotations

import re
from urllib.parse import unquote

# Greedy: a password with an unquoted '/' or '@' is hidden whole.
_USERINFO = re.compile(r"^([a-zA-Z][\w+.-]*://)(.*)@")
_NEAREST_USERINFO = re.compile(r"^([a-zA-Z][\w+.-]*://)([^@/?#]*)@")
_SECRET_QUERY = re.compile(r"((?:password|passwd|secret|token|key|sig|signature)=)[^&\s]+", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://\S+")


def hide_secrets(url: str) -> str:
    """The address with `***` in place of its password and of query values that look like secrets."""

    def hidden(match: re.Match[str]) -> str:
        scheme, userinfo = match.groups()
        user, colon, _ = userinfo.partition(":")
        return f"{scheme}{user}:***@" if colon else match[0]

    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub(hidden, url))


def hide_secrets_in(text: str) -> str:
    """The text with `***` in place of the secrets of all addresses in it, whatever they stand between."""
    return _SECRET_QUERY.sub(r"\1***", _ADDRESS.sub(lambda match: hide_secrets(match[0]), text))


def scrub(text: str, url: str) -> str:
    """`text` with every occurrence of the secrets of `url` blotted out, quoted or not."""
    text = text.replace(url, hide_secrets(url))
    matches = [match for pattern in (_USERINFO, _NEAREST_USERINFO) if (match := pattern.match(url))]
    secrets = [match[2].partition(":")[2] for match in matches]
    secrets += [found[0].partition("=")[2] for found in _SECRET_QUERY.finditer(url)]
    for secret in {form for found in secrets for form in (found, unquote(found)) if form}:
        text = text.replace(secret, "***")
    return text


def without_secrets(url: str) -> str:
    """The address, for a parameter that is recorded with its run. Raises ValueError where it carries a secret."""
    if hide_secrets_in(url) != url:
        raise ValueError("keys and passwords belong in the environment or in fsspec's configuration")
    return url
