"""Home: the folder where Liuyi keeps its store, its ledger, and the runs' own files.

    home = Home.find()
    home.store.open("3f9ab2c41e0d")
    home.ledger.runs()

`$LIUYI_HOME` names it; otherwise it is the nearest `.liuyi` folder upward from here, otherwise `~/.liuyi`.
Store and ledger may live elsewhere: `$LIUYI_STORE_URL` and `$LIUYI_LEDGER_URL`, or `store:` and `ledger:` in the
home's `settings.yaml`: any fsspec address, and `sqlite:///path` or `postgresql://user@host/database`.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from liuyi.core.errors import LiuyiError, did_you_mean

if TYPE_CHECKING:
    from liuyi.core.ledger import Ledger
    from liuyi.core.store import Store

FOLDER = ".liuyi"
SETTINGS = "settings.yaml"
_SETTINGS_FIELDS = ("store", "ledger")


class Home:
    """A home at a path; nothing is created before it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    def __repr__(self) -> str:
        return f"Home({self.path})"

    @classmethod
    def find(cls, path: Path | None = None) -> Home:
        """The home at `path`, or the one that belongs to this place."""
        if path is not None:
            return cls(path)
        if named := os.environ.get("LIUYI_HOME"):
            return cls(Path(named))
        here = Path.cwd()
        near = next((folder / FOLDER for folder in [here, *here.parents] if (folder / FOLDER).is_dir()), None)
        return cls(near or Path.home() / FOLDER)

    @cached_property
    def store(self) -> Store:
        """The store of artifacts."""
        from liuyi.core.store import Store

        return Store(self._address("store") or str(self.path / "store"), self.path / "cache")

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of runs."""
        from liuyi.core.ledger import Ledger

        return Ledger(self._address("ledger") or str(self.path / "ledger.db"))

    @property
    def runs_dir(self) -> Path:
        """Where every run keeps its own folder."""
        return self.path / "runs"

    @property
    def work_root(self) -> Path:
        """Where every unfinished step keeps its own folder."""
        return self.path / "work"

    def run_dir(self, run_id: str) -> Path:
        """The folder of one run: its events and its log. Created on the way."""
        return _made(self.runs_dir / run_id)

    def work_dir(self, step_key: str) -> Path:
        """The folder in which the work of one step key goes on; it survives kills. Created on the way."""
        return _made(self.work_root / step_key)

    def close(self) -> None:
        """Close the ledger's connections; the home may be used again."""
        if "ledger" in self.__dict__:
            self.ledger.close()

    def _address(self, field: str) -> str:
        """Where the store or the ledger is, if not in the home itself. Relative paths start at the home."""
        said = os.environ.get(f"LIUYI_{field.upper()}_URL") or self._settings.get(field, "")
        if said.startswith("sqlite:///") and ":memory:" not in said:
            return str(self.path / said.removeprefix("sqlite:///"))
        return str(self.path / Path(said).expanduser()) if said and "://" not in said else said

    @cached_property
    def _settings(self) -> dict[str, str]:
        path = self.path / SETTINGS
        if not path.exists():
            return {}
        import yaml

        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: bytes that are no text, or no date
            # The parser's own message quotes the file, and the file may hold a password.
            raise LiuyiError("this is not valid YAML", where=str(path)) from None
        if not isinstance(found, dict):
            raise LiuyiError("settings are fields with values", where=str(path), hint="store: s3://bucket/liuyi")
        for field, value in found.items():
            if field not in _SETTINGS_FIELDS:
                hint = did_you_mean(str(field), _SETTINGS_FIELDS)
                raise LiuyiError(f"there is no setting '{field}'", where=str(path), hint=hint)
            if not isinstance(value, str):
                raise LiuyiError(f"'{field}' must be an address", where=str(path), hint="quote it")
        return found


def _made(folder: Path) -> Path:
    from liuyi.core.disk import full_disk_is_told

    with full_disk_is_told("making a folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
