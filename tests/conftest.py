"""What tests of several rooms share.

`world` is a home whose artifacts descend from documents to a model's evaluation; `toys` is a plugin with small steps,
and `toy_home` an empty home where they can be run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import steady  # noqa: F401
from liuyi.core import step as registry
from liuyi.core.home import Home
from world import World

TOYS = Path(__file__).parent / "toy_steps.py"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home."""
    monkeypatch.delenv("LIUYI_STORE_URL", raising=False)
    monkeypatch.delenv("LIUYI_LEDGER_URL", raising=False)
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def built_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world that `world` copies: it is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LIUYI_STORE_URL", raising=False)
        patch.delenv("LIUYI_LEDGER_URL", raising=False)
        built = World(Home(tmp_path_factory.mktemp("world") / "home")).build()
    built.home.close()
    return built


@pytest.fixture
def world(home: Home, built_world: World) -> World:
    """A home with a whole lineage in it."""
    shutil.copytree(built_world.home.path, home.path)
    return built_world.at(home)


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
