"""The ledger's database: opened once, brought up to date, shared by many processes and threads.

SQLite runs in WAL mode: readers never wait, writers take turns (`BEGIN IMMEDIATE`, so that a writer waits for its turn
instead of failing halfway). PostgreSQL needs nothing special. Transactions are short on both.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from liuyi.core.errors import LedgerError, OutOfDisk
from liuyi.core.secrets import hide_secrets, scrub
from liuyi.core.tables import REVISION

BUSY_TIMEOUT_S = 60.0


class Database:
    """A database by URL: `sqlite:///path`, a bare path (SQLite), or `postgresql://…`.

    Raises LedgerError if it cannot be opened, is not a ledger, or was written by a newer version; OutOfDisk if there
    is no room. No error, log or repr shows a password.
    """

    def __init__(self, url: str) -> None:
        self._url = _normal(url)
        self.shown = hide_secrets(self._url)

    def __repr__(self) -> str:
        return f"Database({self.shown})"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; it sees one consistent state."""
        with self._errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are all made when the block ends, or none of them."""
        with self._errors(), Session(self._writer) as session, session.begin():
            yield session

    def now(self, session: Session) -> float:
        """The time that all users of this database agree on, in seconds since the epoch."""
        if self.is_sqlite:
            return time.time()
        return float(session.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def close(self) -> None:
        """Close idle connections; the database opens again when it is used."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    @property
    def is_sqlite(self) -> bool:
        return self._url.startswith("sqlite")

    @cached_property
    def _engine(self) -> Engine:
        with self._errors():
            engine = self._create_engine()
            with engine.connect() as connection:
                revision = _revision(connection)
            if revision != REVISION:
                self._upgrade(engine, revision)
            _forget_after_fork(engine)
            return engine

    @cached_property
    def _writer(self) -> Engine:
        return self._engine.execution_options(immediate=True)

    def _create_engine(self) -> Engine:
        dumps = partial(json.dumps, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if not self.is_sqlite:
            return create_engine(self._url, json_serializer=dumps, pool_pre_ping=True)
        path = Path(str(make_url(self._url).database))
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self._url, json_serializer=dumps, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _upgrade(self, engine: Engine, revision: str | None) -> None:
        from liuyi.core.migrations import upgrade

        with self._alone(engine) as connection:
            if _revision(connection) != REVISION:
                upgrade(connection, self.shown)

    @contextmanager
    def _alone(self, engine: Engine) -> Iterator[Connection]:
        """A connection in a transaction that no second process can be in: one upgrades, the others wait."""
        if not self.is_sqlite:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('liuyi.ledger'))"))
                yield connection
            return
        with Path(f"{make_url(self._url).database}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with engine.connect() as connection:
                raw = connection.connection.driver_connection
                mode = raw.execute("PRAGMA journal_mode=WAL").fetchone()[0]  # type: ignore[union-attr]
            if mode != "wal":
                raise LedgerError(
                    "SQLite cannot be shared by processes in this folder",
                    where=self.shown,
                    hint="a local disk can hold the ledger; on a network filesystem use PostgreSQL",
                )
            with engine.execution_options(immediate=True).begin() as connection:
                yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise LedgerError(f"the ledger refuses it: {self._reason(error)}", where=self.shown) from error
        except DBAPIError as error:
            reason = self._reason(error)
            if "disk is full" in reason or "No space left" in reason:
                raise OutOfDisk("no space left for the ledger", where=self.shown) from error
            hint = "another process holds it for long" if "is locked" in reason else ""
            raise LedgerError(f"the ledger cannot be used: {reason}", where=self.shown, hint=hint) from error
        except SQLAlchemyError as error:
            raise LedgerError(scrub(str(error), self._url), where=self.shown) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfDisk("no space left for the ledger", where=self.shown) from error
            raise LedgerError(f"the ledger cannot be opened: {error.strerror}", where=self.shown) from error

    def _reason(self, error: DBAPIError) -> str:
        return scrub(str(error.orig).strip(), self._url)


def _normal(url: str) -> str:
    if "://" not in url:
        return f"sqlite:///{Path(url).expanduser().absolute()}"
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    if scheme not in ("sqlite", "postgresql+psycopg"):
        raise LedgerError(
            f"a ledger cannot be kept at '{scheme}://'", hint="use sqlite:///path or postgresql://user@host/database"
        )
    url = f"{scheme}://{rest}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # An unquoted '/', '#' or '@' in a password makes pieces of it look like a host, which errors would then show.
    if parsed is None or (scheme != "sqlite" and "@" in f"{parsed.host or ''}{parsed.database or ''}"):
        raise LedgerError(
            "the ledger's address is not a valid URL",
            where=f"{scheme}://…",
            hint="special characters in the password must be percent-encoded",
        ) from None
    if scheme == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise LedgerError("a ledger in memory cannot be shared between processes", hint="use sqlite:///path")
    return url


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_parked: list[object] = []


def _forget_after_fork(engine: Engine) -> None:
    """A forked child must neither use nor close its parent's connections: it parks them and opens its own."""
    _engines.add(engine)


def _park() -> None:
    for engine in _engines:
        _parked.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_park)
