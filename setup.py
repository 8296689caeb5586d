"""Builds the native CPU kernels (`src/liuyi/kernels/native`) where there is a C++ compiler.

The library is a plain shared object with a C interface: it links neither Python nor torch, so one wheel serves every
Python 3 of its platform. Without a compiler, or on another kind of processor, Liuyi installs all the same and computes
with torch. `python setup.py build_ext --inplace` builds it in the source tree.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("src/liuyi/kernels/native")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-g0",
]
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512"),
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16"),
    ],
}
LINKER_FLAGS = ["-pthread", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
AMX = ["-mamx-tile", "-mamx-int8", "-mamx-bf16"]
INSTRUCTION_SETS["amx"] = [*INSTRUCTION_SETS["avx512"], *AMX]
"""The end of a file's name → the flags it is compiled with; other files run on any x86-64."""


def digest_of(paths: Iterable[str]) -> bytes:
    """The digest of what a library is made of, which it carries as its build id: a file's time says little of it."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0".encode() + hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.digest()


class BuildKernels(build_ext):
    """Compiles each file for the instruction set that it names and links all into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def knows_amx(self) -> bool:
        """Whether the compiler does, as gcc and clang do from their versions 11 on."""
        with TemporaryDirectory() as folder:
            source = Path(folder, "empty.cpp")
            source.touch()
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=AMX)
            except CompileError:
                return False
        return True

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        digest = digest_of([*ext.sources, *ext.depends])
        if not self.force and target.exists() and digest in target.read_bytes():
            return

        amx = self.knows_amx()
        sources = [source for source in ext.sources if amx or not source.endswith("_amx.cpp")]
        general = [*FLAGS, "-DLIUYI_AMX"] if amx else FLAGS

        def compile_one(source: str) -> str:
            flags = INSTRUCTION_SETS.get(Path(source).stem.rpartition("_")[2], [])
            (path,) = self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=[*general, *flags])
            return str(path)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        beside = f"{target}.new"
        self.compiler.link_shared_object(
            objects,
            beside,
            extra_postargs=[*LINKER_FLAGS, f"-Wl,--build-id=0x{digest.hex()}"],
            target_lang="c++",
        )
        Path(beside).replace(target)  # A process that has the old library mapped keeps it.


class AnyPythonWheel(bdist_wheel):
    """A wheel that depends on the platform and not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def kernels() -> list[Extension]:
    """The library, where its instruction sets exist."""
    if not sys.platform.startswith("linux") or platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    sources = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    headers = sorted(str(path) for path in SOURCES.glob("*.h"))
    return [Extension("liuyi.kernels.native.libliuyi", sources, depends=[*headers, "setup.py"], optional=True)]


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel})
