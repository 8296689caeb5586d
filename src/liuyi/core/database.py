"""The ledger's database: opened once, brought up to date, shared by many processes and threads.

SQLite runs in WAL mode: readers never wait, writers take turns (`BEGIN IMMEDIATE`, so that a writer waits for its turn
instead of failing halfway). PostgreSQL needs nothing special. Transactions are short on both.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from liuyi.core.errors import LedgerError, OutOfDisk
from liuyi.core.secrets import hide_secrets, scrub
from liuyi.core.tables import REVISION, Base

BUSY_TIMEOUT_S = 60.0


class Database:
    """A database by URL: `sqlite:///path`, a bare path (SQLite), or `postgresql://…`.

    Raises LedgerError if it cannot be opened, is not a ledger, or was written by a newer version; OutOfDisk if there
    is no room. No error, log or repr shows a password.
    """

    def __init__(self, url: str) -> None:
        self._raw = url
        self._url = _parse(url)
        self.is_sqlite = self._url.drivername == "sqlite"
        self.shown = hide_secrets(self._url.render_as_string(hide_password=True))

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

    def upsert(
        self,
        session: Session,
        table: type[Base],
        values: Mapping[str, Any],
        *,
        change: Collection[str],
        where: ColumnElement[bool] | None = None,
    ) -> bool:
        """Insert a row, or `change` the one that is there if `where` holds; True if a row was written."""
        insert = sqlite_insert if self.is_sqlite else postgres_insert
        statement = insert(table).values(**values)
        key = [column.name for column in table.__table__.primary_key]
        if change:
            new = {name: statement.excluded[name] for name in change}
            statement = statement.on_conflict_do_update(index_elements=key, set_=new, where=where)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=key)
        return session.execute(statement.returning(*table.__table__.primary_key)).first() is not None

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
        Path(str(self._url.database)).parent.mkdir(parents=True, exist_ok=True)
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
        with Path(f"{self._url.database}.lock").open("w") as lock:
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
        except (DBAPIError, sqlite3.Error) as error:
            reason = self._reason(error)
            if "disk is full" in reason or "No space left" in reason:
                raise OutOfDisk("no space left for the ledger", where=self.shown) from error
            hint = "another process holds it for long" if "is locked" in reason else ""
            raise LedgerError(f"the ledger cannot be used: {reason}", where=self.shown, hint=hint) from error
        except ModuleNotFoundError as error:
            hint = "pip install 'liuyi[postgres]'"
            raise LedgerError(f"the package {error.name} is missing", where=self.shown, hint=hint) from error
        except SQLAlchemyError as error:
            raise LedgerError(scrub(str(error), self._raw), where=self.shown) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfDisk("no space left for the ledger", where=self.shown) from error
            raise LedgerError(f"the ledger cannot be opened: {error.strerror}", where=self.shown) from error

    def _reason(self, error: DBAPIError | sqlite3.Error) -> str:
        driver = error.orig if isinstance(error, DBAPIError) else error
        return scrub(str(driver).strip(), self._raw)


def _parse(url: str) -> URL:
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser().absolute()))
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    if scheme not in ("sqlite", "postgresql+psycopg"):
        raise LedgerError(
            f"a ledger cannot be kept at '{scheme}://'", hint="use sqlite:///path or postgresql://user@host/database"
        )
    try:
        parsed = make_url(f"{scheme}://{rest}")
    except (ArgumentError, ValueError):
        parsed = None
    # An unquoted '/', '#' or '@' in a password makes pieces of it look like a host, which errors would then show.
    if parsed is None or (scheme != "sqlite" and "@" in f"{parsed.host or ''}{parsed.database or ''}"):
        raise LedgerError(
            "the ledger's address is not a valid URL",
            where=f"{scheme}://…",
            hint="special characters in the password must be percent-encoded",
        )
    if scheme == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise LedgerError("a ledger in memory cannot be shared between processes", hint="use sqlite:///path")
        # Processes change their current folder; the ledger stays where it is.
        parsed = parsed.set(database=str(Path(str(parsed.database)).absolute()))
    return parsed


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
