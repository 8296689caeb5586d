"""`liuyi doctor`."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from liuyi.cli import health
from liuyi.cli.main import cli
from liuyi.core import machine
from liuyi.core.machine import Machine
from liuyi.kernels.library import Library


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(empty: Machine, folder: Path) -> Machine:
        return empty.model_copy(update={"gemm_flops": {"fp32": 2.5e11, "int8": 9e11}, "memory_bytes_per_s": 3.1e10})

    monkeypatch.setattr(machine, "_measure", measure)


def doctor(home: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), "doctor", *options], env={"COLUMNS": "200"})


def test_a_sound_machine(tmp_path: Path) -> None:
    result = doctor(tmp_path / "home")
    assert result.exit_code == 0, result.output
    for shown in ("250 GFLOP/s", "900 GOP/s", "31.00 GB/s", "psycopg", "ledger.db", "all that is needed works"):
        assert shown in result.output, shown


def test_json(tmp_path: Path) -> None:
    said = json.loads(doctor(tmp_path / "home", "--json").stdout)
    assert said["ok"] is True
    assert said["machine"]["gemm_flops"]["fp32"] == 2.5e11
    checks = {check["name"]: check for check in said["checks"]}
    assert checks["home"]["value"] == str(tmp_path / "home")
    assert {check["status"] for check in said["checks"]} <= {"ok", "absent", "warning"}


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = doctor(tmp_path / "file" / "home")
    assert result.exit_code == 1
    assert "broken: home, store, ledger" in result.output
    assert "Traceback" not in result.output


def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is no database, and long enough not to be taken for an empty one" * 9)
    said = json.loads(doctor(tmp_path, "--json").stdout)
    assert [check["name"] for check in said["checks"] if check["status"] == "broken"] == ["ledger"]


def test_a_missing_package_is_broken_only_if_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name in ("hassil", "wordllama"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(health.importlib.metadata, "version", absent)
    result = doctor(tmp_path / "home")
    assert result.exit_code == 1
    assert "broken: hassil" in result.output
    assert "pip install 'hassil" in result.output
    assert "duplicates by meaning" in result.output


def test_it_says_which_kernels_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", "off")
    checks = {check["name"]: check for check in json.loads(doctor(tmp_path / "home", "--json").stdout)["checks"]}
    assert checks["native kernels"]["status"] == "absent"
    assert "LIUYI_KERNELS=off" in checks["native kernels"]["note"]
    monkeypatch.setenv("LIUYI_KERNELS", "avx2")
    monkeypatch.setattr("liuyi.kernels.library._open", lambda most: Library(ctypes.CDLL(None), most, "avx512"))
    checks = {check["name"]: check for check in json.loads(doctor(tmp_path / "home", "--json").stdout)["checks"]}
    assert (checks["native kernels"]["status"], checks["native kernels"]["value"]) == ("ok", "AVX2")
    assert "fp32, bf16, int8, int4" in checks["native kernels"]["note"]
    assert "did not know AMX" in checks["native kernels"]["note"]


def test_every_extra_is_told_by_a_package_of_it() -> None:
    """But for what only people who change Liuyi install."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    told = {found[1]: name for name, why in health.OPTIONAL.items() if (found := re.search(r"liuyi\[(\w+)\]", why))}
    assert set(told) == set(extras) - {"lint"}
    for extra, package in told.items():
        assert any(re.match(rf"{package}\b", line) or f"[{package}]" in line for line in extras[extra]), extra
