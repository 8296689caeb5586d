"""What tests of several rooms share: a home of their own, and a plugin with small steps."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liuyi.core import step as registry
from liuyi.core.home import Home

TOYS = Path(__file__).parent / "toy_steps.py"


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs the toy steps as a plugin: an entry point for the processes that tests start, a registry here."""
    registry.all_steps()
    before = dict(registry._steps)
    site = tmp_path / "site"
    info = site / "toy_steps-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(TOYS, site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[liuyi.steps]\ntoys = toy_steps\n")
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{inherited}" if inherited else str(site))
    monkeypatch.syspath_prepend(str(site))
    sys.modules.pop("toy_steps", None)
    importlib.import_module("toy_steps")
    yield site
    registry._steps.clear()
    registry._steps.update(before)
    sys.modules.pop("toy_steps", None)


@pytest.fixture
def toy_home(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A fresh home, named by the environment, in whose processes the toy steps are installed."""
    for name in ("LIUYI_STORE_URL", "LIUYI_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIUYI_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    yield home
    home.close()
