"""Migrations of the ledger's tables, run by Alembic and packaged with the code that needs them."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from liuyi.core.errors import LedgerError


def config() -> Config:
    """Alembic's configuration: it needs no file."""
    settings = Config()
    settings.set_main_option("script_location", "liuyi.core:migrations")
    return settings


def upgrade(connection: Connection, shown: str) -> None:
    """Bring the database to the newest revision, inside the connection's transaction.

    Raises LedgerError if a newer version of Liuyi wrote it.
    """
    settings = config()
    settings.attributes["connection"] = connection
    try:
        command.upgrade(settings, "head")
    except CommandError as error:
        raise LedgerError(
            "the ledger was written by a newer version of Liuyi", where=shown, hint="update Liuyi to use this ledger"
        ) from error


def head() -> str | None:
    """The newest revision among the migrations."""
    return ScriptDirectory.from_config(config()).get_current_head()
