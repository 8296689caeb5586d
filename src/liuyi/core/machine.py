"""What this machine can do at most, measured: GEMM per number format, memory reads, disk.

    limits = machine_limits()                      # cached in the home; a few seconds the first time
    limits.gemm_flops["fp32"], limits.memory_bytes_per_s
    limits.decode_tokens_per_s(weight_bytes)       # one stream reads every weight once a token

A speed says little by itself; as a fraction of these limits it says how much is left to gain.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from liuyi.core.disk import full_disk_is_told
from liuyi.core.home import Home

CACHE = "machine.json"
_SECONDS_EACH = 0.45
_CPU_SIZE, _GPU_SIZE = 1024, 8192
"""Rows and columns of the matrices that are multiplied."""
_DISK_BYTES = 128 * 2**20
_DISK_SECONDS = 0.8
_PIECE = 8 * 2**20
_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


class Machine(BaseModel):
    """Measured limits of one machine with one number of threads; rates are per second, and the best seen."""

    model_config = ConfigDict(frozen=True)
    cpu: str
    threads: int
    torch: str
    gpu: str = ""
    gemm_flops: dict[str, float]
    """FLOP/s of a large square matrix product on the CPU: `fp32`, `bf16`, and `int8` (int8 × int8 → int32)."""
    memory_bytes_per_s: float
    """Reading an array that fits in no cache."""
    gpu_gemm_flops: dict[str, float] = {}
    gpu_memory_bytes_per_s: float | None = None
    disk_write_bytes_per_s: float | None = None
    """Writing and syncing one file in the home, and reading it back past the page cache."""
    disk_read_bytes_per_s: float | None = None
    busy: bool = False
    """Others were computing during the measurement: the true limits are higher. It is measured again next time."""

    @property
    def fingerprint(self) -> str:
        """What the figures hold for; another CPU, thread count or torch is measured anew."""
        parts = [self.cpu, f"{self.threads} threads", f"torch {self.torch}", self.gpu]
        return ", ".join(part for part in parts if part)

    def flops(self, dtype: str, device: str = "cpu") -> float | None:
        """The GEMM limit for a number format (`fp32`, `bf16`, `int8`); None where it was not measured."""
        return (self.gpu_gemm_flops if device.startswith("cuda") else self.gemm_flops).get(dtype)

    def decode_tokens_per_s(self, weight_bytes: float, device: str = "cpu") -> float | None:
        """The most tokens/s that one stream can decode: each token reads all weights from memory once."""
        rate = self.gpu_memory_bytes_per_s if device.startswith("cuda") else self.memory_bytes_per_s
        return rate / weight_bytes if rate else None


def machine_limits(cache: Path | None = None, *, fresh: bool = False) -> Machine:
    """The limits of this machine, from the cache file (the home's `machine.json`) or measured in about four seconds.

    A figure measured while others used the machine is only a lower bound: it is measured again the next time it is
    asked for, and the better of both is kept. Raises OutOfDisk if the disk is full.
    """
    path = cache or Home.find().path / CACHE
    known = _read(path)
    cpu, threads, torch_version, gpu = cpu_model(), _threads(), _torch_version(), _gpu_name()
    empty = Machine(cpu=cpu, threads=threads, torch=torch_version, gpu=gpu, gemm_flops={}, memory_bytes_per_s=0)
    found = known.get(empty.fingerprint)
    if found and not found.busy and not fresh:
        return found
    measured = _measure(empty, path.parent)
    if found and not fresh:
        measured = _better(found, measured)
    known[measured.fingerprint] = measured
    _write(path, known)
    return measured


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return next(iter(names), platform.processor() or platform.machine())


def has_int8() -> bool:
    """Whether the CPU multiplies int8 natively (VNNI, AMX, dot product)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(
        _INT8_FLAGS & set(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _measure(machine: Machine, folder: Path) -> Machine:
    busy = _busy_share() > 0.25
    write, read = _disk_rates(folder)
    return machine.model_copy(
        update={
            "gemm_flops": _gemm_flops("cpu", _CPU_SIZE),
            "memory_bytes_per_s": _memory_rate("cpu", _beyond_cache()),
            "gpu_gemm_flops": _gemm_flops("cuda", _GPU_SIZE) if machine.gpu else {},
            "gpu_memory_bytes_per_s": _memory_rate("cuda", 2**30) if machine.gpu else None,
            "disk_write_bytes_per_s": write,
            "disk_read_bytes_per_s": read,
            "busy": busy,
        }
    )


def _busy_share() -> float:
    """The share of the machine that others use while this process sleeps."""
    import psutil

    times = psutil.cpu_times_percent(interval=0.25)
    return 1 - float(times.idle + getattr(times, "iowait", 0.0)) / 100


def gemm_flops(dtype: str, device: str = "cpu") -> float:
    """FLOP/s of a large square matrix product in `fp32` or `bf16`, the best of half a second.

    Random numbers that others draw are left alone.
    """
    import torch

    size = _CPU_SIZE if device == "cpu" else _GPU_SIZE
    generator = torch.Generator(device).manual_seed(1)
    left, right = torch.randn(2, size, size, device=device, generator=generator).to(
        {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    )
    out = torch.empty_like(left)
    return 2.0 * size**3 / _best_seconds(lambda: torch.mm(left, right, out=out), device)


def _gemm_flops(device: str, size: int) -> dict[str, float]:
    import torch

    work = 2.0 * size**3
    rates = {dtype: gemm_flops(dtype, device) for dtype in ("fp32", "bf16")}
    if device != "cpu" or has_int8():
        whole = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
        rates["int8"] = work / _best_seconds(lambda: torch._int_mm(whole, whole.t()), device)
    return rates


def _memory_rate(device: str, size_bytes: int) -> float:
    import torch

    matrix = torch.ones(size_bytes // 4 // 4096, 4096, device=device)
    vector = torch.ones(4096, device=device)
    out = torch.empty(matrix.shape[0], device=device)
    return matrix.numel() * 4 / _best_seconds(lambda: torch.mv(matrix, vector, out=out), device)


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The fastest of the runs that fit into half a second, after one to warm up."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    until = time.perf_counter() + _SECONDS_EACH
    best = timed()
    while time.perf_counter() < until:
        best = min(best, timed())
    return best


def _beyond_cache() -> int:
    """Bytes of an array that fits in no cache, within a tenth of the free memory."""
    import psutil

    sizes = [256 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(4 * int(text.rstrip("KM")) * unit)
    return max(32 * 2**20, min(max(sizes), int(psutil.virtual_memory().available) // 10))


def _disk_rates(folder: Path) -> tuple[float, float | None]:
    """(write, read) bytes/s of one file in `folder`; read is None where the page cache cannot be left out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".disk-speed-{os.getpid()}"
    piece = os.urandom(_PIECE)
    try:
        with full_disk_is_told("measuring the disk", folder), path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            written = 0
            while written < _DISK_BYTES and time.perf_counter() - began < _DISK_SECONDS:
                written += file.write(piece)
                os.fsync(file.fileno())
            write = written / (time.perf_counter() - began)
        if not hasattr(os, "posix_fadvise"):
            return write, None
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            read = 0
            while time.perf_counter() - began < _DISK_SECONDS and (got := len(file.read(_PIECE))):
                read += got
            return write, read / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def _better(old: Machine, new: Machine) -> Machine:
    """The higher of two measurements, figure by figure; busy only if both were."""

    def most(a: float | None, b: float | None) -> float | None:
        return max(a or 0.0, b or 0.0) or None

    def each(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        return {name: max(a.get(name, 0.0), rate) for name, rate in b.items()}

    return new.model_copy(
        update={
            "gemm_flops": each(old.gemm_flops, new.gemm_flops),
            "memory_bytes_per_s": max(old.memory_bytes_per_s, new.memory_bytes_per_s),
            "gpu_gemm_flops": each(old.gpu_gemm_flops, new.gpu_gemm_flops),
            "gpu_memory_bytes_per_s": most(old.gpu_memory_bytes_per_s, new.gpu_memory_bytes_per_s),
            "disk_write_bytes_per_s": most(old.disk_write_bytes_per_s, new.disk_write_bytes_per_s),
            "disk_read_bytes_per_s": most(old.disk_read_bytes_per_s, new.disk_read_bytes_per_s),
        }
    )


def _read(path: Path) -> dict[str, Machine]:
    """The cached measurements by fingerprint; a cache that cannot be read is measured anew."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Machine.model_validate(entry) for name, entry in entries.items()}
    except (FileNotFoundError, ValueError, AttributeError, ValidationError):
        return {}


def _write(path: Path, known: dict[str, Machine]) -> None:
    text = json.dumps({name: machine.model_dump() for name, machine in sorted(known.items())}, indent=1)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with full_disk_is_told("writing the machine's limits", path.parent):
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
