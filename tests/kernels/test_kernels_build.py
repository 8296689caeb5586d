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


def build(folder: Path, compiler: str = "g++") -> tuple[int, int]:
    """Build in place; when the library was written, and what it answers."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    env = {**os.environ, "CC": compiler, "CXX": compiler}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)
    library = folder / "src/liuyi/kernels/native/libliuyi.so"
    ask = f"import ctypes; print(ctypes.CDLL({str(library)!r}).answer())"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    return library.stat().st_mtime_ns, int(answer)


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Where the sources of a project lie that is built as ours is."""
    folder = tmp_path / "src/liuyi/kernels/native"
    folder.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src/liuyi/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return folder


@pytest.mark.slow
def test_the_library_is_built_again_when_its_sources_are_others_and_only_then(tmp_path: Path, native: Path) -> None:
    source = native / "answer.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 41; }\n')
    first = build(tmp_path)
    os.utime(source, (2e9, 2e9))
    assert build(tmp_path) == first == (first[0], 41)
    source.write_text(source.read_text().replace("41", "42"))
    os.utime(source, (1e9, 1e9))
    assert build(tmp_path)[1] == 42


ANSWER = """
#if defined(LIUYI_AVX512)
int newest();
#else
int newest() { return LIUYI_AVX2; }
#endif
extern "C" __attribute__((visibility("default"))) int answer() { return newest(); }
"""
NEWEST = "#include <immintrin.h>\nint newest() { return sizeof(__m512bh); }\n"


@pytest.mark.slow
def test_instructions_that_the_compiler_does_not_know_are_left_out(tmp_path: Path, native: Path) -> None:
    (native / "answer.cpp").write_text(ANSWER)
    (native / "newest_avx512.cpp").write_text(NEWEST)
    older = tmp_path / "older-g++"
    older.write_text('#!/bin/sh\ncase " $* " in *" -mavx512bf16 "*) exit 1 ;; esac\nexec g++ "$@"\n')
    older.chmod(0o755)
    assert build(tmp_path, str(older))[1] == 1
    assert build(tmp_path)[1] == 64, "a newer compiler builds it again"
