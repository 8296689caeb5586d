"""Builds the native CPU kernels (`src/liuyi/kernels/native`) where there is a C++ compiler.

The library is a plain shared object with a C interface: it links neither Python nor torch, so one wheel serves every
Python 3 of its platform. Instruction sets that the compiler does not know are left out. Without a compiler, or on
another kind of processor, Liuyi installs all the same and computes with torch. `python setup.py build_ext --inplace`
builds it in the source tree.
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
    "-Wextra",
    "-g0",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [
    *(*AVX2, "-mprefer-vector-width=512"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16"),
    # What the headers of gcc 12 leave undefined on purpose.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
]
AMX = [*AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512, "amx": AMX}
"""The end of a file's name → the flags it is compiled with; other files run on any x86-64. Each has those before."""
SAMPLES = {
    "avx2": "__m256 sample(__m256 x) { return _mm256_fmadd_ps(x, x, x); }",
    "avx512": "__m512 sample(__m512 x, __m512bh y) { return _mm512_dpbf16_ps(x, y, y); }",
    "amx": "void sample() { _tile_dpbf16ps(0, 1, 2); _tile_dpbssd(0, 1, 2); }",
}
"""What a compiler, its headers and its assembler have to know for a set."""
LINKER_FLAGS = ["-pthread", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]


def digest_of(paths: Iterable[str], sets: Iterable[str]) -> bytes:
    """The digest of what a library is made of, which it carries as its build id: a file's time says little of it."""
    digest = hashlib.sha256(" ".join(sets).encode())
    for path in paths:
        digest.update(f"{path}\0".encode() + hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.digest()


def set_of(source: str) -> str:
    """The instruction set that a file is compiled for; empty for any x86-64."""
    end = Path(source).stem.rpartition("_")[2]
    return end if end in INSTRUCTION_SETS else ""


class BuildKernels(build_ext):
    """Compiles each file for the instruction set that it names and links all into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def known_sets(self) -> list[str]:
        """The instruction sets that the compiler knows. Raises CompileError if it knows none, or if there is none."""
        known = []
        with TemporaryDirectory() as folder:
            source = Path(folder, "sample.cpp")
            for name, flags in INSTRUCTION_SETS.items():
                source.write_text(f"#include <immintrin.h>\n{SAMPLES[name]}\n")
                try:
                    self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
                except CompileError:
                    if not known:
                        raise
                    print(f"the compiler does not know {name.upper()}: the native kernels do without it")
                    break
                known.append(name)
        return known

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        sets = self.known_sets()
        digest = digest_of([*ext.sources, *ext.depends], sets)
        if not self.force and target.exists() and digest in target.read_bytes():
            return

        # Of an inline function that several files have, the linker takes the first: that of the oldest instructions.
        order = ["", *sets]
        sources = sorted((one for one in ext.sources if set_of(one) in order), key=lambda one: order.index(set_of(one)))
        general = [*FLAGS, *(f"-DLIUYI_{name.upper()}" for name in sets)]

        def compile_one(source: str) -> str:
            flags = [*general, *INSTRUCTION_SETS.get(set_of(source), [])]
            (path,) = self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)
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
