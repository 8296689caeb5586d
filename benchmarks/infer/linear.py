"""The packed linear layers by themselves: arithmetic of a prompt and memory of a decoding step, as parts of the limits.

    python benchmarks/infer/linear.py                           # SmolLM2-135M's matrices, all formats
    python benchmarks/infer/linear.py --formats int8 --hidden 2048 --intermediate 8192

Each figure is the fastest of many short runs, on one thread and on all cores of the process. Prefill: 128 tokens times
each matrix of a layer, in GFLOP/s, beside torch's float32 and bfloat16 products of these shapes. Decoding: few tokens
times a matrix that fits in no cache, in GB/s of packed weights, beside reading memory.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from liuyi.core.machine import cores
from liuyi.kernels.library import INSTRUCTION_SETS
from liuyi.kernels.linear import PackedLinear, aligned
from liuyi.kernels.parts import Part

PREFILL_TOKENS = 128
SECONDS = 0.6
"""How long each figure is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="fp32,bf16,int8,int4")
    parser.add_argument("--instruction-set", choices=INSTRUCTION_SETS)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--intermediate", type=int, default=1536)
    parser.add_argument("--kv", type=int, default=192, help="columns of keys, and of values")
    parser.add_argument("--streamed-mb", type=int, default=400, help="size in float32 of the matrix of decoding steps")
    arguments = parser.parse_args()
    hidden, wide = arguments.hidden, arguments.intermediate
    shapes = {"qkv": (hidden + 2 * arguments.kv, hidden), "output": (hidden, hidden)}
    shapes |= {"gate, up": (2 * wide, hidden), "down": (hidden, wide)}
    threads = sorted({1, cores()})

    print(f"prefill, {PREFILL_TOKENS} tokens, GFLOP/s on {threads} threads")
    for name, (rows, columns) in shapes.items():
        print(f"  {name:10} [{rows} x {columns}]")
        for dtype in (torch.float32, torch.bfloat16):
            print(f"    torch {str(dtype).removeprefix('torch.'):8} {_torch_speeds(rows, columns, threads, dtype)}")
        for fmt in arguments.formats.split(","):
            layer = _layer(fmt, rows, columns, name == "gate, up", arguments.instruction_set)
            print(f"    {fmt:5} {_prefill_speeds(layer, threads)}", flush=True)

    rows = arguments.streamed_mb * 1_000_000 // (4 * hidden) // 64 * 64
    print(f"decoding, a matrix of {rows} rows, GB/s on {threads} threads")
    memory = np.ones(64_000_000, np.float32)
    print(f"  reading memory: {_speeds(lambda at, of: memory[_share(memory.size, at, of)].max(), 0.256, threads)}")
    for fmt in arguments.formats.split(","):
        layer = _layer(fmt, rows, hidden, False, arguments.instruction_set)
        for tokens in (1, 4, 16):
            speeds = _decode_speeds(layer, tokens, threads)
            print(f"  {fmt:5} {tokens:2} tokens, {layer.bytes / 1e6:.0f} MB: {speeds}", flush=True)


def _layer(fmt: str, rows: int, columns: int, gated: bool, instruction_set: str | None) -> PackedLinear:
    generator = np.random.default_rng(0)
    some = generator.standard_normal((min(rows, 4096), columns), dtype=np.float32) / columns**0.5
    weight = np.resize(some, (rows, columns))
    parts = [Part(weight[: rows // 2]), Part(weight[rows // 2 :])] if gated else [Part(weight)]
    return PackedLinear(fmt, parts, columns, gated=gated, instruction_set=instruction_set)


def _prefill_speeds(layer: PackedLinear, threads: list[int]) -> str:
    """Tokens are cut between the threads."""
    x = np.random.default_rng(1).standard_normal((PREFILL_TOKENS, layer.columns), dtype=np.float32)
    prepared = layer.prepare(x)
    y = aligned((PREFILL_TOKENS, layer.rows // 2 if layer.gated else layer.rows), np.float32)
    epilogue = "swiglu" if layer.gated else "store"

    def work(at: int, of: int) -> None:
        share = _share(PREFILL_TOKENS, at, of)
        layer.multiply(prepared, y, tokens=(share.start, share.stop), epilogue=epilogue)

    return _speeds(work, 2e-9 * PREFILL_TOKENS * layer.rows * layer.columns, threads)


def _decode_speeds(layer: PackedLinear, tokens: int, threads: list[int]) -> str:
    """Panels are cut between the threads."""
    x = np.random.default_rng(1).standard_normal((tokens, layer.columns), dtype=np.float32)
    prepared, y = layer.prepare(x), aligned((tokens, layer.rows), np.float32)

    def work(at: int, of: int) -> None:
        share = _share(layer.panels, at, of)
        layer.multiply(prepared, y, panels=(share.start, share.stop))

    return _speeds(work, layer.bytes / 1e9, threads)


def _torch_speeds(rows: int, columns: int, threads: list[int], dtype: torch.dtype) -> str:
    x, weight = torch.randn(PREFILL_TOKENS, columns).to(dtype), torch.randn(columns, rows).to(dtype)
    found = []
    for count in threads:
        torch.set_num_threads(count)
        seconds = min(_seconds(lambda _, __: torch.mm(x, weight), 1))
        found.append(f"{2e-9 * PREFILL_TOKENS * rows * columns / seconds:7.1f}")
    torch.set_num_threads(1)
    return " ".join(found)


def _share(count: int, at: int, of: int) -> slice:
    return slice(count * at // of, count * (at + 1) // of)


def _speeds(work: Callable[[int, int], object], amount: float, threads: list[int]) -> str:
    return " ".join(f"{amount / min(_seconds(work, count)):7.1f}" for count in threads)


def _seconds(work: Callable[[int, int], object], threads: int) -> list[float]:
    """Run on several threads at once, again and again: from the first to begin until the last to end."""
    ends = time.perf_counter() + SECONDS
    began, ended = [0.0] * threads, [0.0] * threads
    seconds: list[float] = []
    going = True

    def record() -> None:
        nonlocal going
        if ended[0]:
            seconds.append(max(ended) - min(began))
        going = time.perf_counter() < ends

    barrier = threading.Barrier(threads, action=record)

    def one(at: int) -> None:
        while True:
            barrier.wait()
            if not going:
                return
            began[at] = time.perf_counter()
            work(at, threads)
            ended[at] = time.perf_counter()

    others = [threading.Thread(target=one, args=(at,)) for at in range(1, threads)]
    for other in others:
        other.start()
    one(0)
    for other in others:
        other.join()
    return seconds


if __name__ == "__main__":
    main()
