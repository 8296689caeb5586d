"""The ledger's address and schema: migrations agree with the tables, bad addresses are told, passwords never are."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from liuyi.core import migrations, tables
from liuyi.core.errors import LedgerError, OutOfDisk
from liuyi.core.ledger import Ledger


def test_the_migrated_schema_is_the_one_in_the_code(ledger: Ledger, ledger_url: str) -> None:
    ledger.runs()
    engine = create_engine(ledger_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.Base.metadata) == []
        assert context.get_current_revision() == tables.REVISION
    engine.dispose()


def test_the_newest_migration_is_the_one_that_opens_fast() -> None:
    assert migrations.head() == tables.REVISION


def test_a_current_ledger_opens_without_alembic(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    Ledger(url).runs()
    code = (
        "import sys; from liuyi.core.ledger import Ledger; Ledger(sys.argv[1]).runs(); print('alembic' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_a_migration_that_is_killed_leaves_nothing_half_made(ledger_url: str) -> None:
    code = """
import os, sys
from liuyi.core import migrations
from liuyi.core.ledger import Ledger

upgrade = migrations.upgrade
migrations.upgrade = lambda *args: (upgrade(*args), os._exit(9))
Ledger(sys.argv[1]).runs()
"""
    assert subprocess.run([sys.executable, "-c", code, ledger_url]).returncode == 9
    engine = create_engine(ledger_url.replace("postgresql://", "postgresql+psycopg://"))
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    ledger = Ledger(ledger_url)
    assert ledger.runs() == []
    ledger.close()


def test_a_ledger_from_the_future_is_left_alone(ledger: Ledger, ledger_url: str) -> None:
    ledger.runs()
    ledger.close()
    engine = create_engine(ledger_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'zz99'")
    engine.dispose()
    with pytest.raises(LedgerError, match="newer version of Liuyi"):
        Ledger(ledger_url).runs()


def test_a_file_that_is_no_ledger_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(LedgerError, match="not a database") as caught:
        Ledger(str(path)).runs()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:hunter2@host/db", "cannot be kept at 'mysql://'"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql://u:hun/ter2@127.0.0.1:1/db", "cannot be used"),
        ("postgresql://u:hun@ter2@127.0.0.1:1/db", "percent-encoded"),
        ("postgresql://u:hun#ter2@127.0.0.1:x/db", "percent-encoded"),
        ("postgresql://u:hunter2@127.0.0.1:port/db", "percent-encoded"),
    ],
)
def test_a_wrong_address_is_told_without_its_password(url: str, message: str) -> None:
    with pytest.raises(LedgerError, match=message) as caught:
        Ledger(url).runs()
    assert "ter2" not in everything_said(caught.value)


@pytest.mark.parametrize("query", ["", "?password=hunter2", "?sslpassword=hunter2"])
def test_an_unreachable_server_is_told_without_its_password(query: str) -> None:
    ledger = Ledger(f"postgresql://liuyi:hunter2%2F@127.0.0.1:1/db{query}")
    assert "hunter2" not in f"{ledger!r} {ledger} {ledger.url} {vars(ledger)}"
    with pytest.raises(LedgerError, match="cannot be used") as caught:
        ledger.runs()
    said = everything_said(caught.value)
    assert "hunter2" not in said
    assert "127.0.0.1" in said


def test_a_missing_driver_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LedgerError, match=r"pip install 'liuyi\[postgres\]'"):
        Ledger("postgresql://liuyi@127.0.0.1:1/db").runs()


@pytest.mark.postgres
def test_a_refused_password_is_not_shown(postgres_url: str) -> None:
    right = postgres_url.partition("://liuyi:")[2].partition("@")[0]
    wrong = right[::-1]
    with pytest.raises(LedgerError, match="authentication failed") as caught:
        Ledger(postgres_url.replace(right, wrong)).runs()
    said = everything_said(caught.value)
    assert wrong not in said
    assert right not in said


def test_a_full_disk_is_told_as_such(small_disk: Path) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"))
    run_id = ledger.create_run(recipe="r", text="", source="", overrides=[], seed=0)
    with pytest.raises(OutOfDisk, match="no space left for the ledger"):
        ledger.add_metrics(run_id, "step", [("x" * 1000, index, 1.0) for index in range(5000)])
    assert ledger.metrics(run_id) == []
    assert ledger.runs(limit=None)[-1].id == run_id
    ledger.close()


def test_a_disk_that_is_full_from_the_beginning_is_told_as_such(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 4_000_000)
    with pytest.raises(OutOfDisk, match="no space left for the ledger"):
        Ledger(str(small_disk / "ledger.db")).runs()


def everything_said(error: BaseException) -> str:
    return str(error) + repr(error) + "".join(traceback.format_exception(error))
