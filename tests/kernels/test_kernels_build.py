"""The native library is built again when its sources are others, whatever the times of the files say."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64" or shutil.which("g++") is None,
    reason="there is no library for this machine, or no compiler",
)


def build(folder: Path) -> tuple[int, int]:
    """Build in place; when the library was written, and what it answers."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    library = folder / "src/liuyi/kernels/native/libliuyi.so"
    ask = f"import ctypes; print(ctypes.CDLL({str(library)!r}).answer())"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    return library.stat().st_mtime_ns, int(answer)


def test_the_library_is_built_again_when_its_sources_are_others_and_only_then(tmp_path: Path) -> None:
    native = tmp_path / "src/liuyi/kernels/native"
    native.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src/liuyi/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    source = native / "answer.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 41; }\n')
    first = build(tmp_path)
    os.utime(source, (2e9, 2e9))
    assert build(tmp_path) == first == (first[0], 41)
    source.write_text(source.read_text().replace("41", "42"))
    os.utime(source, (1e9, 1e9))
    assert build(tmp_path)[1] == 42
