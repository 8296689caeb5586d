"""Home is found where it should be, and its settings say where store and ledger are, without showing passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from liuyi.core.errors import LiuyiError
from liuyi.core.home import Home


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LIUYI_HOME", "LIUYI_STORE_URL", "LIUYI_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


def test_a_home_is_named_or_near_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "project" / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert Home.find().path == tmp_path / "user" / ".liuyi"
    (tmp_path / "project" / ".liuyi").mkdir()
    assert Home.find().path == tmp_path / "project" / ".liuyi"
    monkeypatch.setenv("LIUYI_HOME", str(tmp_path / "named"))
    assert Home.find().path == tmp_path / "named"
    assert Home.find(Path("here")).path == deep / "here"
    assert not (tmp_path / "named").exists()


def test_store_and_ledger_are_in_the_home_unless_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    assert home.store.url == str(home.path / "store")
    assert home.ledger.url == f"sqlite:///{home.path / 'ledger.db'}"
    assert not home.path.exists()
    home.path.mkdir()
    (home.path / "settings.yaml").write_text("store: memory://bucket\nledger: postgresql://me:hunter2@host/db\n")
    home = Home(home.path)
    assert home.store.url == "memory://bucket"
    assert home.ledger.url == "postgresql+psycopg://me:***@host/db"
    assert "hunter2" not in f"{home!r} {home.ledger!r}"
    monkeypatch.setenv("LIUYI_STORE_URL", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("LIUYI_LEDGER_URL", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    home = Home(home.path)
    assert home.store.url == str(tmp_path / "elsewhere")
    assert home.ledger.url == f"sqlite:///{tmp_path / 'elsewhere.db'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stroe: x", "no setting 'stroe'\n  did you mean 'store'?"),
        ("- store", "fields with values"),
        ("store: 3", "'store' must be an address"),
        ("ledger: {password: hunter2}", "'ledger' must be an address"),
        ("ledger: 'postgresql://me:hunter2@host/db", "not valid YAML"),
        ("ledger: @hunter2", "not valid YAML"),
        ("ledger: [hunter2, 2020-13-45]", "not valid YAML"),
    ],
)
def test_wrong_settings_are_told_by_file_and_field(text: str, message: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(LiuyiError) as caught:
        home.ledger.runs()
    assert message in str(caught.value)
    assert str(tmp_path / "settings.yaml") in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_relative_addresses_start_at_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a home?with#odd::characters%20"
    path.mkdir()
    (path / "settings.yaml").write_text("store: artifacts\nledger: sqlite:///other.db\n")
    monkeypatch.chdir(tmp_path)
    home = Home(path)
    home.ledger.runs()
    assert (path / "other.db").is_file()
    assert home.store.url == str(path / "artifacts")
    staging = home.store.stage("corpus")
    (staging.path / "x").write_text("y")
    assert home.store.publish(staging).path.is_relative_to(path / "artifacts")
    monkeypatch.setenv("LIUYI_LEDGER_URL", "third.db")
    Home(path).ledger.runs()
    assert (path / "third.db").is_file()


def test_folders_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.run_dir("260131-142233-k3f9").is_dir()
    assert home.work_dir("k" * 64).is_dir()
    assert home.run_dir("r").parent == home.runs_dir
    assert home.work_dir("k").parent == home.work_root
