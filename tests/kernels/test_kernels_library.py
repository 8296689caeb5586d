"""The native library: found, switched off, missing, or from another version, each with its reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from liuyi.kernels import library
from liuyi.kernels.library import KernelsAbsent, KernelsError, kernels
from liuyi.kernels.model import NativeModel, NativeShape, Part

SHAPE = NativeShape(vocab=64, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16, norm_eps=1e-5)


@pytest.fixture(autouse=True)
def _opened_anew() -> Iterator[None]:
    library._open.cache_clear()
    yield
    library._open.cache_clear()


@pytest.fixture
def built() -> None:
    try:
        kernels()
    except KernelsAbsent as absent:
        pytest.skip(f"no native kernels: {absent.message}")


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", "off")
    with pytest.raises(KernelsAbsent, match="switched off by LIUYI_KERNELS=off"):
        kernels()


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", "sse2")
    with pytest.raises(KernelsAbsent, match="not one of off, avx2, avx512, amx"):
        kernels()


def test_without_the_library_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "libliuyi.so")
    with pytest.raises(KernelsAbsent, match="not built") as absent:
        kernels()
    assert "compiler" in absent.value.hint


def test_a_damaged_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "libliuyi.so"
    damaged.write_bytes(b"not a library")
    monkeypatch.setattr(library, "PATH", damaged)
    with pytest.raises(KernelsAbsent, match="cannot be loaded"):
        kernels()


@pytest.mark.usefixtures("built")
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library._open.cache_clear()
    monkeypatch.setattr(library, "INTERFACE", -1)
    with pytest.raises(KernelsAbsent, match="this package needs -1"):
        kernels()


@pytest.mark.usefixtures("built")
def test_the_older_instructions_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUYI_KERNELS", "avx2")
    assert kernels().instruction_set == "avx2"


@pytest.mark.usefixtures("built")
def test_it_needs_neither_python_nor_torch() -> None:
    """A plain shared object: every symbol that it lacks is of the C library."""
    needed = subprocess.run(["readelf", "-d", library.PATH], capture_output=True, text=True, check=True).stdout
    names = {line.partition("[")[2].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line}
    assert {name.split(".")[0] for name in names} <= {"libc", "libm", "libpthread", "ld-linux-x86-64"}


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "multiple"),
        ({"head_dim": 15}, "even"),
        ({"head_dim": 1024}, "at most 256"),
        ({"layers": -1}, "not positive|windows"),
        ({"vocab": 0}, "not positive"),
        ({"intermediate": 2**30}, "beyond what there is room for"),
        ({"heads": 2**20, "head_dim": 256}, "wider than what there is room for"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, int], words: str) -> None:
    shape = NativeShape(**{**SHAPE.__dict__, **changes})
    with pytest.raises(KernelsError, match=words):
        NativeModel(shape, windows=[0, 0], blocks=1)


@pytest.mark.usefixtures("built")
def test_a_cache_beyond_all_memory_is_an_error() -> None:
    with pytest.raises(KernelsError, match="memory"):
        NativeModel(SHAPE, windows=[0, 0], blocks=2**31 - 1, kv="fp32")


@pytest.mark.usefixtures("built")
def test_weights_that_do_not_fit_are_refused() -> None:
    model = NativeModel(SHAPE, windows=[0, 0], blocks=1)
    square = np.zeros((64, 64), np.float32)
    for matrix, layer, parts, words in (
        ("output", 0, [Part(square)], "another number of rows"),
        ("down", 0, [Part(square)], "48 columns"),
        ("output", 7, [Part(square[:32])], "no layer 7"),
        ("output", 0, [Part(square[:32].astype(np.float64))], "float64"),
        ("output", 0, [Part(square[:32].astype(np.int8))], "scales"),
        ("output", 0, [Part(square[:32], bias=np.zeros(3, np.float32))], "bias"),
    ):
        with pytest.raises(KernelsError, match=words):
            model.pack(matrix, layer, "int8", parts)
    with pytest.raises(KernelsError, match="another length"):
        model.set_vector("final_norm", 0, np.ones(31, np.float32))
    with pytest.raises(KernelsError, match="embedding"):
        model.set_embedding(np.zeros((64, 31), np.float32))


@pytest.mark.usefixtures("built")
def test_a_model_gives_its_memory_back() -> None:
    """Models made and dropped a hundred times take no more memory than a few of them."""
    script = """
import resource
import numpy as np
from liuyi.kernels.model import NativeModel, NativeShape, Part
shape = NativeShape(4096, 512, 48, 1, 4, 2, 16, 1e-5)
for turn in range(100):
    model = NativeModel(shape, windows=[0], blocks=4)
    model.pack("head", 0, "fp32", [Part(np.ones((4096, 512), np.float32))])
    if turn == 5:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
late = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert late < early + 30_000, (early, late)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


@pytest.mark.usefixtures("built")
def test_a_model_without_all_its_weights_computes_nothing() -> None:
    from liuyi.kernels.library import BatchView

    model = NativeModel(SHAPE, windows=[0, 0], blocks=1)
    with pytest.raises(KernelsError, match="lacks weights"):
        model.forward(BatchView(), 0)
