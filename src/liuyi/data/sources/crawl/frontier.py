"""Which addresses are known and what became of each: a SQLite file, in which every change is there or not.

An address is `waiting`, then `taken` while its page is fetched, and ends as `done` (its page lies in the archive),
`moved` (it leads elsewhere), `refused` or `failed`, with the reason. What a killed crawl had taken waits again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["page", "sitemap"]
State = Literal["waiting", "taken", "done", "moved", "refused", "failed"]

_TABLES = """
create table if not exists urls (
    position integer primary key autoincrement,
    url text not null unique,
    kind text not null,
    host text not null,
    depth integer not null,
    redirects integer not null,
    via text not null,
    state text not null default 'waiting',
    reason text not null default '',
    attempts integer not null default 0,
    body_digest text not null default ''
);
create index if not exists urls_waiting on urls (state, host, depth, position);
create index if not exists urls_body on urls (body_digest) where body_digest <> '';
create table if not exists robots (origin text primary key, status integer not null, body blob not null);
create table if not exists archive (file text not null, bytes integer not null);
"""


@dataclass(frozen=True)
class Target:
    """An address to fetch."""

    url: str
    kind: Kind
    host: str
    depth: int
    """Links followed from a start address to this one."""
    redirects: int
    """Redirects followed to this one."""
    attempts: int = 0


@dataclass(frozen=True)
class Visit:
    """What became of an address."""

    url: str
    kind: Kind
    depth: int
    via: str
    """The page that names it; empty for a start address."""
    state: State
    reason: str


class Frontier:
    """The state of a crawl."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(_TABLES)
        self._db.execute("update urls set state = 'waiting' where state = 'taken'")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Changes of which all or none happen."""
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def add(self, target: Target, via: str, refused: str = "") -> bool:
        """Make an address known, waiting or refused for a reason; False where it is known already."""
        values = (target.url, target.kind, target.host, target.depth, target.redirects, via)
        found = self._db.execute(
            "insert or ignore into urls (url, kind, host, depth, redirects, via, state, reason) "
            "values (?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, "refused" if refused else "waiting", refused),
        )
        return found.rowcount > 0

    def hosts(self) -> list[str]:
        """The hosts that have an address waiting, the longest known first."""
        rows = self._db.execute("select host from urls where state = 'waiting' group by host order by min(position)")
        return [host for (host,) in rows]

    def start_hosts(self) -> set[str]:
        """The hosts of the start addresses, and those that they led to."""
        return {
            host for (host,) in self._db.execute("select distinct host from urls where depth = 0 and kind = 'page'")
        }

    def take(self, host: str) -> Target | None:
        """The next address of a host, nearest to the start first; it is taken from now on."""
        row = self._db.execute(
            "select url, kind, host, depth, redirects, attempts from urls where state = 'waiting' and host = ? "
            "order by depth, position limit 1",
            (host,),
        ).fetchone()
        if row is None:
            return None
        self._db.execute("update urls set state = 'taken' where url = ?", (row[0],))
        return Target(*row)

    def target(self, url: str) -> Target | None:
        """A known address as it was added."""
        query = "select url, kind, host, depth, redirects, attempts from urls where url = ?"
        row = self._db.execute(query, (url,)).fetchone()
        return Target(*row) if row else None

    def settle(self, url: str, state: State, reason: str = "", body_digest: str = "") -> None:
        """Say what became of an address."""
        self._db.execute(
            "update urls set state = ?, reason = ?, body_digest = ? where url = ?", (state, reason, body_digest, url)
        )

    def put_back(self, url: str) -> None:
        """Let an address wait again, after an attempt that failed for a passing reason."""
        self._db.execute("update urls set state = 'waiting', attempts = attempts + 1 where url = ?", (url,))

    def state(self, url: str) -> State | None:
        """The state of an address; None where it is not known."""
        row = self._db.execute("select state from urls where url = ?", (url,)).fetchone()
        return row[0] if row else None

    def same_body(self, digest: str) -> str | None:
        """An address that gave a page of these bytes."""
        row = self._db.execute("select url from urls where body_digest = ? and state = 'done'", (digest,)).fetchone()
        return row[0] if row else None

    def count(self, state: State, host: str | None = None) -> int:
        """How many addresses (of a host) are in a state."""
        query = "select count(*) from urls where state = ? and kind = 'page' and (? is null or host = ?)"
        return int(self._db.execute(query, (state, host, host)).fetchone()[0])

    def visits(self) -> Iterator[Visit]:
        """Every address, in the order in which they became known."""
        rows = self._db.execute("select url, kind, depth, via, state, reason from urls order by position")
        yield from (Visit(*row) for row in rows)

    def refuse_waiting(self, reason: str) -> None:
        """Settle all that still waits."""
        self._db.execute("update urls set state = 'refused', reason = ? where state = 'waiting'", (reason,))

    def robots(self, origin: str) -> tuple[int, bytes] | None:
        """(status, text) of an origin's robots.txt, if it was asked for."""
        row = self._db.execute("select status, body from robots where origin = ?", (origin,)).fetchone()
        return (row[0], row[1]) if row else None

    def keep_robots(self, origin: str, status: int, body: bytes) -> None:
        """Remember an origin's robots.txt."""
        self._db.execute("insert or replace into robots values (?, ?, ?)", (origin, status, body))

    def all_robots(self) -> Iterable[tuple[str, int, bytes]]:
        """(origin, status, text) of each robots.txt."""
        return self._db.execute("select origin, status, body from robots order by origin").fetchall()

    def archived(self) -> tuple[str, int]:
        """(file, bytes) up to which the archive is known to the frontier."""
        row = self._db.execute("select file, bytes from archive").fetchone()
        return (row[0], row[1]) if row else ("", 0)

    def keep_end(self, file: str, size: int) -> None:
        """Remember the archive's new end."""
        self._db.execute("delete from archive")
        self._db.execute("insert into archive values (?, ?)", (file, size))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
