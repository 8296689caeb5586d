"""Cores that a process may use, against control groups as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liuyi.core import cores as cores_module
from liuyi.core.cores import cores, cpu_quota, limit_threads


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def _system(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def _first_version(folder: str, quota: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        # A container of its own namespace; a service; what lies around a group counts too.
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, 3.5),
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "350000 100000"}, 1.5),
        # A container that is told the host's path and sees its own group at the top.
        ("0::/docker/abc", {"cpu.max": "50000 100000"}, 0.5),
        (
            "4:memory:/x\n1:cpu,cpuacct:/",
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            4.0,
        ),
        ("1:cpu:/d/e\n0::/", {"cpu/d/cpu.cfs_quota_us": "300000", "cpu/d/cpu.cfs_period_us": "100000"}, 3.0),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n1:cpu:/\n0::/f", {"unified/f/cpu.max": "200000 100000"}, 2.0),
        # What cannot be understood is no limit.
        ("0::/", {"cpu.max": "half of it"}, None),
        ("0::/", {"cpu.max": "200000 0"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_quota_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(_system(tmp_path, groups, files)) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert cores(tmp_path) == 8


@pytest.mark.parametrize(("most", "count"), [("350000", 3), ("50000", 1), ("6400000", 8), ("max", 8)])
def test_whole_cores_within_the_quota(tmp_path: Path, most: str, count: int) -> None:
    assert cores(_system(tmp_path, "0::/", {"cpu.max": f"{most} 100000"})) == count


def test_libraries_are_kept_to_the_quota_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores_module, "cpu_quota", lambda root: 2.0)
    environment: dict[str, str] = {}
    limit_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "2"}
    environment["OMP_NUM_THREADS"] = "5"
    limit_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "5"}
    monkeypatch.setattr(cores_module, "cpu_quota", lambda root: None)
    unlimited: dict[str, str] = {}
    limit_threads(unlimited)
    assert unlimited == {}
