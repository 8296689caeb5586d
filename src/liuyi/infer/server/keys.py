"""API keys: a file that holds their hashes and limits, and the ring of all keys that a server knows.

    keys:
    - name: desk
      sha256: 9f86d081884c7d65…
      created: '2026-11-25T03:00:00+00:00'
      requests_per_minute: 60
      tokens_per_minute: 20000

A key is 256 random bits, so that its SHA-256 says nothing about it; what a person makes up belongs into an environment
variable, of which the server keeps hashes only, too. A server notices when its file changes: a revoked key is refused
from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from liuyi.core.errors import LiuyiError

PREFIX = "ly-"
_FIELDS = ("name", "sha256", "created", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key, which is not the key."""

    name: str
    sha256: str
    created: str = ""
    requests_per_minute: int | None = None
    """None for as many as there may be."""
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""


class KeyFile:
    """The keys in a YAML file. Every change is written beside and renamed, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[ApiKey]:
        """All keys; none if there is no file. Raises LiuyiError, saying where, if it cannot be understood."""
        try:
            values = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise LiuyiError(f"the keys cannot be read: {error}", where=str(self.path)) from error
        entries = values.get("keys") if isinstance(values, dict) else None
        if not isinstance(entries, list):
            raise self._wrong("it has no list 'keys'")
        keys = [self._key(number, entry) for number, entry in enumerate(entries, 1)]
        names = [key.name for key in keys]
        for name in names:
            if names.count(name) > 1:
                raise self._wrong(f"two keys are named '{name}'")
        return keys

    def create(
        self, name: str, *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> tuple[str, ApiKey]:
        """A new key, which nobody can show again, and what the file holds of it.

        Raises LiuyiError if the name is empty or taken.
        """
        keys = self.load()
        if not name:
            raise LiuyiError("a key needs a name", where=str(self.path))
        if any(key.name == name for key in keys):
            raise LiuyiError(f"there is a key named '{name}' already", where=str(self.path), hint="revoke it first")
        secret = PREFIX + secrets.token_urlsafe(32)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        key = ApiKey(name, digest_of(secret), created, requests_per_minute, tokens_per_minute)
        self._save([*keys, key])
        return secret, key

    def revoke(self, name: str) -> None:
        """Forget a key. Raises LiuyiError if there is none of that name."""
        keys = self.load()
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise LiuyiError(f"there is no key named '{name}'", where=str(self.path), hint=f"there are: {known}")
        self._save(left)

    def _save(self, keys: Iterable[ApiKey]) -> None:
        entries = [{name: value for name, value in asdict(key).items() if value not in (None, "")} for key in keys]
        text = yaml.safe_dump({"keys": entries}, sort_keys=False, allow_unicode=True)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            beside.touch(mode=0o600)
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            raise LiuyiError(f"the keys cannot be written: {error}", where=str(self.path)) from error

    def _key(self, number: int, entry: Any) -> ApiKey:
        if not isinstance(entry, dict) or not set(entry) <= set(_FIELDS):
            raise self._wrong(f"key {number} may have the fields {', '.join(_FIELDS)}")
        name, digest = entry.get("name"), str(entry.get("sha256", ""))
        if not isinstance(name, str) or not name:
            raise self._wrong(f"key {number} has no name")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise self._wrong(f"the key '{name}' has no 'sha256' of 64 hexadecimal digits")
        limits = {field: entry.get(field) for field in ("requests_per_minute", "tokens_per_minute")}
        for field, limit in limits.items():
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                raise self._wrong(f"{field} of the key '{name}' must be a whole number of at least 1")
        return ApiKey(name, digest, str(entry.get("created", "")), **limits)

    def _wrong(self, message: str) -> LiuyiError:
        return LiuyiError(message, where=str(self.path), hint="make keys with: liuyi keys create NAME")


class KeyRing:
    """All keys that a server knows: those of a file as it is now, and those that it was given."""

    def __init__(self, given: Iterable[str] = (), file: KeyFile | None = None) -> None:
        """`given` are keys themselves, as from an environment variable; they have no limits.

        Raises LiuyiError if the file cannot be understood.
        """
        self._given = [ApiKey(f"env-{at}", digest_of(key)) for at, key in enumerate(given, 1)]
        self._file = file
        self._stamp: object = None
        self._keys: list[ApiKey] = []
        self.refresh()

    @property
    def keys(self) -> list[ApiKey]:
        """What is known of each."""
        return self._given + self._keys

    def __bool__(self) -> bool:
        return bool(self._given) or self._file is not None

    def refresh(self) -> None:
        """Read the file again if it has changed. Raises LiuyiError if it cannot be understood."""
        if self._file is None:
            return
        try:
            found = self._file.path.stat()
            stamp: object = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp or stamp is None:
            self._keys = self._file.load()
            self._stamp = stamp

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key; all are compared, each in constant time."""
        digest = digest_of(key)
        found = [known for known in self.keys if hmac.compare_digest(known.sha256, digest)]
        return found[0] if found else None


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
